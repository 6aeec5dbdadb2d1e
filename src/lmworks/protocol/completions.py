"""`/v1/completions`: request, response (which is also the stream's chunk). Knows no tokenizer and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import Field, field_validator

from lmworks.core.sampling import SamplingParams
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.logprobs import CompletionLogprobs
from lmworks.protocol.sampling import UNSUPPORTED_EXTRAS, SamplingFields
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import WireResponse

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

Prompt = str | list[int]


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`."""

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_EXTRAS,
        "suffix": ("",),
        "response_format": ({"type": "text"},),
    }

    prompt: list[Prompt]
    """One text, one list of token ids, or a list of either; always a list once read."""
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    best_of: Annotated[int | None, Field(ge=1)] = None

    @field_validator("prompt", mode="plain")
    @classmethod
    def _prompt_list(cls, value: object) -> list[Prompt]:
        if isinstance(value, str) or _is_token_ids(value):
            return [value]
        if isinstance(value, list) and value and all(isinstance(p, str) or _is_token_ids(p) for p in value):
            return value
        raise ValueError("a prompt is a string, a non-empty list of token ids, or a non-empty list of those")

    def sampling_params(self) -> SamplingParams:
        """The engine's view of this request.

        Raises:
            InvalidRequestError: fields contradict each other or ask for what is not implemented.
        """
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError("'best_of' other than 'n' is not supported", "Leave it out", param="best_of")
        if self.echo and self.logprobs is not None:
            raise InvalidRequestError(
                "'echo' together with 'logprobs' is not supported: prompt tokens are not scored",
                "Leave one of them out",
                param="logprobs",
                code="unsupported_parameter",
            )
        return self.to_sampling_params(max_tokens=self.max_tokens or DEFAULT_MAX_TOKENS, logprobs=self.logprobs)


def _is_token_ids(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


class CompletionChoice(WireResponse):
    """One completion of one prompt, or what a chunk adds to it."""

    index: int
    """Prompt number times `n` plus the completion's number."""
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


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
