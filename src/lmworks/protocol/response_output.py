"""`/v1/responses`: the response and its items. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from lmworks.core.generation import TokenLogprob
from lmworks.protocol.logprobs import TokenBytes, chat_logprobs
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import WireResponse

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(WireResponse):
    """Words of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[dict[str, Any]] = []


class ReasoningText(WireResponse):
    """Thoughts."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputMessage(WireResponse):
    """The answer in words."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class OutputReasoning(WireResponse):
    """What the model thought before."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    summary: list[Any] = []
    content: list[ReasoningText]
    status: ItemStatus


class OutputCall(WireResponse):
    """A call of a function."""

    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(WireResponse):
    """What the input's tokens were."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(WireResponse):
    """What the output's tokens were."""

    reasoning_tokens: int


class ResponseUsage(WireResponse):
    """How many tokens went in and came out."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        """The counts of completions under this endpoint's names."""
        prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
        reasoning = completion.reasoning_tokens if completion else 0
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=prompt.cached_tokens if prompt else 0),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
            total_tokens=usage.total_tokens,
        )


class ResponseError(WireResponse):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(WireResponse):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(WireResponse):
    """A response, in whatever state; what was asked is repeated in it."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"completed_at"})

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None


class DeletedResponse(WireResponse):
    """What `DELETE /v1/responses/{id}` says."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(WireResponse):
    """The input of a stored response."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool = False


def text_logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """Log-probabilities as this endpoint has them: those of chat, each by itself."""
    return [entry.model_dump() for entry in chat_logprobs(entries, token_bytes).content]
