"""What the engine hands out after a step. Knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmworks.core.errors import EngineError
from lmworks.core.generation import FinishReason, TokenLogprob


@dataclass(frozen=True)
class Delta:
    """What one step added to one completion."""

    request_id: str
    index: int
    """Which of the request's `n` completions."""
    text: str
    """New text; may be empty while characters or stop strings are incomplete."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    """One per new token, if asked for."""
    finish_reason: FinishReason | None
    """Set on the last delta."""
    num_prompt_tokens: int
    num_generated_tokens: int
    """Of this completion so far."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    error: EngineError | None = None
    """Why this completion was aborted by the engine."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """If asked for, in a completion's first delta: one per prompt token, None for the first."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended the completion; None for an end-of-sequence token and all else."""

    def then(self, later: Delta) -> Delta:
        """This and what the same step added after it."""
        logprobs = None if self.logprobs is None else self.logprobs + (later.logprobs or ())
        return replace(
            later,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )
