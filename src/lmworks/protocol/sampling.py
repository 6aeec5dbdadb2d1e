"""The decoding fields that chat and text completions share, and their way into `core.SamplingParams`.

OpenAI's names plus vLLM's extras. Knows no endpoint and no tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from lmworks.core.sampling import SamplingParams
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.wire import WireRequest, field_path

UNSUPPORTED_EXTRAS: dict[str, tuple[Any, ...]] = {
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "length_penalty": (1.0,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
"""Extras that other servers accept and that would change what is answered."""


class StreamOptions(WireRequest):
    """What a stream carries besides text."""

    include_usage: bool | None = None


class SamplingFields(WireRequest):
    """Fields of both completion endpoints."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, Field(ge=1, le=64)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: list[str] | None = None
    top_k: Annotated[int | None, Field(ge=-1)] = None
    """0 and -1 keep all."""
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: object) -> object:
        stops = [value] if isinstance(value, str) else value
        if isinstance(stops, list) and "" in stops:
            raise ValueError("a stop string must not be empty")
        return stops

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdigit()):
                raise ValueError(f"{key!r} is not a token id")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def to_sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's view; fields the client left out keep the defaults of `SamplingParams`.

        Raises:
            InvalidRequestError: `stream_options` without `stream`, or a value the engine's rules exclude.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("'stream_options' needs 'stream': true", param="stream_options")
        given: dict[str, Any] = {
            "n": self.n,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {int(k): v for k, v in (self.logit_bias or {}).items()},
            "max_tokens": max_tokens,
            "stop": tuple(self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": self.ignore_eos,
            "seed": self.seed,
            "logprobs": logprobs,
        }
        try:
            return SamplingParams(**{k: v for k, v in given.items() if v is not None})
        except ValidationError as error:  # a rule of the engine that this schema does not repeat
            problem = error.errors()[0]
            param = field_path(problem["loc"])
            raise InvalidRequestError(f"Invalid value for {param!r}: {problem['msg']}", param=param) from None
