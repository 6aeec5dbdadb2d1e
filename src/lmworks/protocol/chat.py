"""`/v1/chat/completions`: request, response and stream chunks. Knows no template and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lmworks.core.messages import Message, Role
from lmworks.core.sampling import SamplingParams
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.logprobs import ChatLogprobs
from lmworks.protocol.sampling import UNSUPPORTED_EXTRAS, SamplingFields
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import WireRequest, WireResponse, json_type

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""Roles on the wire and the role a template sees."""


class ChatMessage(WireRequest):
    """One turn. `content` is text, or a list of text parts, which are joined by line breaks."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @field_validator("role")
    @classmethod
    def _known_role(cls, value: str) -> str:
        if value not in ROLES:
            raise ValueError(f"the role must be one of {', '.join(ROLES)}")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: object) -> str | None:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            return "\n".join(_part_text(part) for part in value)
        raise ValueError("content must be a string or a non-empty list of text parts")

    @model_validator(mode="after")
    def _not_empty(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a {self.role} message needs content")
        return self

    def to_message(self) -> Message:
        """The value that templates and engines share."""
        return Message(
            role=ROLES[self.role],
            content=self.content or "",
            name=self.name,
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
        )


def _part_text(part: object) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"a content part must be an object, not a {json_type(part)}")
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise ValueError(f"content parts of type {kind!r} are not supported; send parts of type 'text'")
    text = part.get(kind)
    if not isinstance(text, str):
        raise ValueError(f"a content part of type {kind!r} must hold a string named {kind!r}")
    return text


class ChatCompletionRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_EXTRAS,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "echo": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "documents": ([],),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    """The current name of `max_tokens`; wins when both are given."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None

    def to_messages(self) -> list[Message]:
        """The conversation."""
        return [message.to_message() for message in self.messages]

    def sampling_params(self) -> SamplingParams:
        """The engine's view of this request.

        Raises:
            InvalidRequestError: fields contradict each other.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return self.to_sampling_params(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class AssistantMessage(WireResponse):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(WireResponse):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(WireResponse):
    """The body of a whole response."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class ChatDelta(WireResponse):
    """What a chunk adds."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"role", "content"})

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(WireResponse):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(WireResponse):
    """One event of a stream; the last one has usage and no choices when the client asked for it."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"usage"})

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
