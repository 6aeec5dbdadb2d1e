"""`POST /v1/chat/completions`: the response and the chunks of its stream. Knows no engine."""

from __future__ import annotations

from typing import ClassVar, Literal

from lmworks.protocol.logprobs import ChatLogprobs, PromptLogprobs
from lmworks.protocol.tools import ToolCall, ToolCallDelta
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import WireResponse

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class AssistantMessage(WireResponse):
    """The answer."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"tool_calls", "reasoning", "reasoning_content"})

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where there are tool calls and no words."""
    refusal: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The older name of `reasoning`, which clients still read."""
    tool_calls: list[ToolCall] | None = None


class ChatChoice(WireResponse):
    """One of `n` answers."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"token_ids"})

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it (vLLM's extra)."""
    token_ids: list[int] | None = None


class ChatCompletion(WireResponse):
    """The body of a whole response."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"prompt_logprobs", "prompt_token_ids"})

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class ChatDelta(WireResponse):
    """What a chunk adds."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset(
        {"role", "content", "reasoning", "reasoning_content", "tool_calls"}
    )

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(WireResponse):
    """One answer's part of a chunk."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"token_ids", "stop_reason"})

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(WireResponse):
    """One event of a stream; the last one has usage and no choices when the client asked for it."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"usage", "prompt_token_ids", "prompt_logprobs"})

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
