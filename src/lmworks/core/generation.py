"""What a language model can do for others: generate, score, embed.

Satisfied by the engine, by HTTP clients and by test doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability (nats) of one token and of its likeliest alternatives `[(token_id, logprob), ...]`."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class CompletionOutput:
    """One completion of one prompt."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    cumulative_logprob: float | None = None
    """Sum over the tokens, where their log-probabilities are known."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it; None for an end-of-sequence token and all else."""


@dataclass(frozen=True)
class RequestOutput:
    """Everything generated for one prompt."""

    request_id: str
    prompt: str
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """If asked for: one per prompt token, None for the first, which nothing precedes."""
    num_tokens: tuple[int, int] | None = None
    """Of the prompt and of all completions, where they are counted and not named, as over HTTP."""


@dataclass(frozen=True)
class LogLikelihood:
    """log p(continuation | context), in nats, summed over `num_tokens` tokens."""

    logprob: float
    num_tokens: int
    is_greedy: bool
    """Whether greedy decoding would have produced exactly this continuation."""


@dataclass(frozen=True)
class Document:
    """A piece of source text with where it came from."""

    id: str
    text: str
    source: str = ""
    license: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Generator(Protocol):
    """Completes prompts and conversations."""

    def generate(self, prompts: Sequence[str], sampling_params: SamplingParams) -> list[RequestOutput]:
        """One output per prompt, in order."""
        ...

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling_params: SamplingParams, /
    ) -> list[RequestOutput]:
        """One assistant turn per conversation, in order."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores given continuations."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
        """For each `(context, continuation)`, the log-likelihood of the continuation.

        An empty context means the beginning of a document.
        """
        ...


@runtime_checkable
class Embedder(Protocol):
    """Maps texts to vectors."""

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text, in order."""
        ...
