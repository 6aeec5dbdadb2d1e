"""How long it takes to work off a queue, learned from the work done so far. Knows no clock and no queue."""

from __future__ import annotations

from math import ceil

LONGEST_SECONDS = 60
"""Nobody is told to stay away for longer."""


class LoadEstimate:
    """Averages over about the last hundred steps and ten completions."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._completion: float | None = None
        """Tokens of a completion."""

    def step(self, num_tokens: int, seconds: float) -> None:
        """Note a step that computed so many tokens."""
        self._tokens = 0.99 * self._tokens + num_tokens
        self._seconds = 0.99 * self._seconds + seconds

    def finished(self, num_tokens: int) -> None:
        """Note a completion of so many tokens."""
        before = num_tokens if self._completion is None else self._completion
        self._completion = 0.9 * before + 0.1 * num_tokens

    def seconds_for(self, num_tokens: int, num_requests: int) -> int:
        """Seconds, rounded up, until so many requests with so many tokens in their prompts are answered; at least 1."""
        if not self._tokens:
            return 1
        work = num_tokens + num_requests * (self._completion or 0.0)
        return max(1, min(LONGEST_SECONDS, ceil(work * self._seconds / self._tokens)))
