"""The decoding fields that chat and text completions share, and their way into `core.SamplingParams`.

OpenAI's names plus vLLM's extras. Knows no endpoint and no tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, field_validator

from lmworks.core.sampling import BeamSearchParams, SamplingParams, StructuredOutputs
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.wire import WireRequest, invalid

UNSUPPORTED_EXTRAS: dict[str, tuple[Any, ...]] = {
    "logprob_token_ids": ([],),
    "thinking_token_budget": (),
    "repetition_detection": (),
    "kv_transfer_params": ({},),
    "prompt_embeds": (),
}
"""Extras that other servers accept and that would change what is answered."""

MAX_STOPS = 64
"""Stop strings or ids of one request; each is looked for at every token."""


def _stop_list(value: object) -> object:
    stops = [value] if isinstance(value, str) else value
    if isinstance(stops, list) and "" in stops:
        raise ValueError("a stop string must not be empty")
    return stops


Stops = Annotated[
    list[str] | None,
    Field(max_length=MAX_STOPS),
    BeforeValidator(_stop_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
                {"type": "null"},
            ]
        },
        mode="validation",
    ),
]
"""One string or several; a list once read."""

BEAM_FIELDS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty", "ignore_eos")

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(WireRequest):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    """End with a chunk that has usage and no choices."""
    continuous_usage_stats: bool | None = None
    """Usage so far in every chunk."""


class SamplingFields(WireRequest):
    """Fields of both completion endpoints."""

    model: str | None = None
    """None asks the first model served."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, Field(ge=1, le=64)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: Stops = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    """0 and -1 keep all."""
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    typical_p: Annotated[float | None, Field(gt=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=10)] = None
    min_tokens: Annotated[int | None, Field(ge=0)] = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId] | None, Field(max_length=MAX_STOPS)] = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: Annotated[list[Annotated[str, Field(min_length=1)]] | None, Field(max_length=MAX_STOPS)] = None
    allowed_token_ids: Annotated[list[TokenId] | None, Field(min_length=1)] = None
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1)] = None
    """Keep so many of the prompt's tokens; -1 keeps what the context holds."""
    truncation_side: Literal["left", "right"] | None = None
    """Where the prompt is cut; None means on the left."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Name tokens `token_id:N` in log-probabilities, since texts of tokens may coincide."""
    priority: Annotated[int | None, Field(ge=-(2**31), lt=2**31)] = None
    """Lower goes first, where the engine schedules by priority."""
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """Only requests of one salt, and of one key, share cached prefixes."""
    use_beam_search: bool | None = None
    """Find the `n` likeliest completions instead of sampling."""
    length_penalty: Annotated[float | None, Field(ge=-10, le=10)] = None
    """Of beam search: above 0 favors long completions, below 0 short ones; likewise what follows."""
    early_stopping: bool | None = None
    num_beam_groups: Annotated[int | None, Field(ge=1, le=64)] = None
    diversity_penalty: Annotated[float | None, Field(ge=0, le=100)] = None
    request_id: Annotated[str | None, Field(pattern=r"^[\w.:-]{1,128}$")] = None
    """Becomes part of the response's id."""

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"{key[:20]!r} is not a token id")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return bool(self.include_usage and self.stream_options and self.stream_options.continuous_usage_stats)

    def to_sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        best_of: int | None = None,
        structured_outputs: StructuredOutputs | None = None,
    ) -> SamplingParams:
        """The engine's view; fields the client left out keep the defaults of `SamplingParams`.

        Raises:
            InvalidRequestError: `stream_options` without `stream`, or values that exclude each other.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("'stream_options' needs 'stream': true", param="stream_options")
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' is {self.min_tokens}, more than the {max_tokens} tokens asked for at most",
                "Lower it",
                param="min_tokens",
            )
        given: dict[str, Any] = {
            name: value
            for name in SamplingParams.model_fields.keys() & SamplingFields.model_fields.keys()
            if (value := getattr(self, name)) is not None
        }
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
            if name in given:
                given[name] = tuple(given[name])
        if "top_k" in given:
            given["top_k"] = max(0, given["top_k"])
        if "logit_bias" in given:
            given["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
        beside = {
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
            "best_of": best_of,
            "structured_outputs": structured_outputs,
        }
        try:
            return SamplingParams(**given | {name: value for name, value in beside.items() if value is not None})
        except ValidationError as error:  # a rule of the engine that this schema does not repeat
            raise invalid(error) from None

    def beam_search_params(self, max_tokens: int | None) -> BeamSearchParams | None:
        """How to search for the likeliest completions, where that is asked for.

        Raises:
            InvalidRequestError: beam search does not go with another field, or fields contradict each other.
        """
        if not self.use_beam_search:
            return None
        for name in ("stream", "logprobs", "prompt_logprobs", "stop", "best_of"):
            if getattr(self, name, None):
                raise InvalidRequestError(f"'use_beam_search' does not go with '{name}'", "Leave one out", param=name)
        given = {name: getattr(self, name) for name in BEAM_FIELDS if getattr(self, name) is not None}
        try:
            return BeamSearchParams(beam_width=self.n or 1, max_tokens=max_tokens or 2**31 - 1, **given)
        except ValidationError as error:
            raise invalid(error) from None
