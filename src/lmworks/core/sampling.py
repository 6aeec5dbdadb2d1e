"""How the next token is chosen, with vLLM's names. Knows no engine."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config


class StructuredOutputs(Config):
    """What the completion's text must be; exactly one of these."""

    json_schema: str | dict[str, Any] | bool | None = None
    """A JSON Schema, as text or as a value."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """The whole text matches."""
    choice: tuple[str, ...] | None = None
    """One of these strings."""
    grammar: str | None = None
    """A context-free grammar in Lark's or EBNF's notation."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}, not {given or 'none'}")
        return self


class SamplingParams(Config):
    """Decoding parameters of one request; `temperature=0` is greedy."""

    n: Annotated[int, Field(ge=1, le=64)] = 1
    """Completions per prompt."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Added to the logits of these token ids."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """At most this many new tokens; None means up to the context's end."""
    stop: tuple[str, ...] = ()
    """Stop before any of these strings."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    """Return log-probabilities of the chosen token and this many alternatives."""
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    """Return log-probabilities of the prompt's tokens, but the first, and this many alternatives."""
    typical_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the tokens whose surprise is closest to the distribution's entropy, up to this mass (arXiv:2202.00666)."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """No end-of-sequence or stop token before so many new tokens."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Nothing but these."""
    bad_words: tuple[str, ...] = ()
    """Texts that must not be generated: the last token of each is forbidden after the ones before."""
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputs | None = None
