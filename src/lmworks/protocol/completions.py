"""`/v1/completions`: request, response (which is also the stream's chunk). Knows no tokenizer and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import Field, PlainValidator, WithJsonSchema

from lmworks.core.sampling import BeamSearchParams, SamplingParams
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.logprobs import CompletionLogprobs, PromptLogprobs
from lmworks.protocol.sampling import UNSUPPORTED_EXTRAS, SamplingFields
from lmworks.protocol.structured import StructuredFields
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import WireResponse

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""
MAX_PROMPTS = 2048
"""Prompts of one request."""

Prompt = str | list[int]


def is_token_ids(value: object) -> TypeGuard[list[int]]:
    """Whether a JSON value is a non-empty list of whole numbers."""
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _prompt_list(value: object) -> list[Prompt]:
    if isinstance(value, str) or is_token_ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(p, str) or is_token_ids(p) for p in value):
        if len(value) > MAX_PROMPTS:
            raise ValueError(f"there may be {MAX_PROMPTS} prompts in one request")
        return value
    raise ValueError("a prompt is a string, a non-empty list of token ids, or a non-empty list of those")


_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_LISTS_OF_IDS: dict[str, Any] = {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MAX_PROMPTS}
_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS}
Prompts = Annotated[
    list[Prompt],
    PlainValidator(_prompt_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, _IDS, _TEXTS, _LISTS_OF_IDS]}, mode="validation"),
]
"""One text, one list of token ids, or a list of either; always a list once read."""


class CompletionRequest(SamplingFields, StructuredFields):
    """The body of `POST /v1/completions`."""

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_EXTRAS

    prompt: Prompts
    suffix: str | None = None
    """What comes after the completion, for models that were trained to fill gaps."""
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    best_of: Annotated[int | None, Field(ge=1, le=64)] = None
    max_tokens: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    """0 scores the prompt, together with `echo` and `logprobs`."""

    @property
    def scores_only(self) -> bool:
        """Whether nothing shall be generated."""
        return self.max_tokens == 0

    def sampling_params(self) -> SamplingParams:
        """The engine's view of this request. A request of no token asks the engine for one, which nobody is shown.

        Raises:
            InvalidRequestError: fields contradict each other.
        """
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise InvalidRequestError("'best_of' must be at least 'n'", param="best_of")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            raise InvalidRequestError("'best_of' above 'n' cannot be streamed", "Leave one out", param="best_of")
        if self.suffix and self.echo:
            raise InvalidRequestError("'echo' together with 'suffix' is not supported", param="suffix")
        default = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return self.to_sampling_params(
            max_tokens=max(1, default),
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs,
            best_of=self.best_of,
            structured_outputs=self.structured(),
        )

    def beams(self) -> BeamSearchParams | None:
        """How to search for the likeliest completions, where that is asked for; errors as in `sampling_params`."""
        return self.beam_search_params(DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens)


class CompletionChoice(WireResponse):
    """One completion of one prompt, or what a chunk adds to it."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"token_ids", "prompt_token_ids", "prompt_logprobs"})

    index: int
    """Prompt number times `n` plus the completion's number."""
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it (vLLM's extra, like what follows)."""
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(WireResponse):
    """A whole response, or one event of a stream."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"usage"})

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
