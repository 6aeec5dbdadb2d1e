"""How the next token is chosen, with vLLM's names. Knows no engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

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
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Keep the k most likely tokens; 0 and -1 keep all."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """Added to the logits of these token ids; beyond ±100 it counts as ±100."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """At most this many new tokens; None means up to the context's end."""
    stop: tuple[str, ...] = ()
    """Stop before any of these strings."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=256)] = None
    """Return log-probabilities of the chosen token and this many alternatives. A server offers fewer; a wide beam
    search needs many."""
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
    """Show the stop string, or the text of the stop token, that ended the completion."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputs | None = None
    best_of: Annotated[int | None, Field(ge=1, le=64)] = None
    """Generate so many completions and return the `n` whose tokens are the most likely together."""

    @field_validator("stop", "bad_words", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of {self.best_of} is below n {self.n}, the completions to return")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids is empty, which forbids every token; leave it out to allow all")
        if not all(word.strip() for word in self.bad_words):
            raise ValueError("one of bad_words is empty; leave it out")
        return self


class BeamSearchParams(Config):
    """Parameters of a search for the likeliest completions, with vLLM's names and transformers' scores.

    A completion's score is its log-probability divided by its length to the power of `length_penalty`.
    """

    beam_width: Annotated[int, Field(ge=1, le=64)]
    """Completions followed at a time, and returned."""
    max_tokens: Annotated[int, Field(ge=1)]
    """At most this many new tokens."""
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    """Has no effect, as in vLLM: log-probabilities are those of the raw logits."""
    length_penalty: float = 1.0
    """Above 0 favors long completions, below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """When to stop once `beam_width` completions have ended: True at once; False when the likeliest of the others
    would not be better if it ended now; "never" when it cannot become better at any length."""
    num_beam_groups: Annotated[int, Field(ge=1)] = 1
    """Groups of beams that are searched one after the other, so that they differ (arXiv:1610.02424)."""
    diversity_penalty: Annotated[float, Field(ge=0.0)] = 0.0
    """Taken from a token's log-probability for each beam of earlier groups that chose it at the same place."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.beam_width % self.num_beam_groups:
            raise ValueError(f"beam_width {self.beam_width} is no multiple of num_beam_groups {self.num_beam_groups}")
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise ValueError("diversity_penalty tells groups apart and needs num_beam_groups of at least 2")
        return self
