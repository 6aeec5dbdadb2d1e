"""How the next token is chosen, with vLLM's names. Knows no engine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lmworks.core.config import Config


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
