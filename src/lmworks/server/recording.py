"""What is kept of one request: its counts, latencies and ending, for the metrics and the journal. Knows no HTTP."""

from __future__ import annotations

import time

from lmworks.core.generation import FinishReason
from lmworks.engine.outputs import Delta
from lmworks.protocol.usage import Usage
from lmworks.server.journal import Journal, JournalEntry
from lmworks.server.metrics import Metrics
from lmworks.server.served_model import ServedModel


class Recording:
    """Follows one request from its arrival to its end.

    Args:
        response_id: the id the client sees.
        model: who answers.
        num_choices: completions to come, over all prompts.
        prompt_tokens: over all prompts.
        arrived: `time.perf_counter()` when the request came in, before it was read and encoded.
    """

    def __init__(
        self,
        metrics: Metrics,
        journal: Journal,
        model: ServedModel,
        response_id: str,
        num_choices: int,
        prompt_tokens: int,
        arrived: float,
    ) -> None:
        self._metrics, self._journal, self._model, self._id = metrics, journal, model, response_id
        self._arrived = arrived
        self._last_token: dict[int, float] = {}
        self._finish_reasons: list[FinishReason | None] = [None] * num_choices
        self.created = int(time.time())
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self._cached_tokens: dict[str, int] = {}

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache."""
        return sum(self._cached_tokens.values())

    def usage(self, reasoning: int | None = None) -> Usage:
        """The counts so far, for the response.

        Args:
            reasoning: completion tokens that were reasoning; None where it is not told apart.
        """
        return Usage.of(self.prompt_tokens, self.completion_tokens, self.cached_tokens, reasoning)

    def add(self, choice: int, delta: Delta) -> None:
        """Count one delta of one completion."""
        if delta.index == 0 and delta.request_id not in self._cached_tokens:
            self._cached_tokens[delta.request_id] = delta.num_cached_tokens
        if delta.token_ids:
            now = time.perf_counter()
            if choice in self._last_token:
                pause = (now - self._last_token[choice]) / len(delta.token_ids)
                self._metrics.next_token(self._model.name, pause)
            elif not self._last_token:
                self._metrics.first_token(self._model.name, now - self._arrived)
            self._last_token[choice] = now
            self.completion_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._finish_reasons[choice] = delta.finish_reason

    def end(self, *, refused: bool = False) -> None:
        """Write the request down; completions without an ending count as aborted.

        Args:
            refused: the engine took the request on not at all, so there is nothing to trace.
        """
        if refused:
            self._metrics.rejected(self._model.name)
            return
        reasons: list[str] = [reason or "abort" for reason in self._finish_reasons]
        seconds = time.perf_counter() - self._arrived
        self._metrics.finished(self._model.name, self.prompt_tokens, self.completion_tokens, seconds)
        self._journal.append(
            JournalEntry(
                id=self._id,
                created=self.created,
                model=self._model.name,
                path=str(self._model.path.resolve()) if self._model.path else None,
                content_hash=self._model.content_hash,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.completion_tokens,
                finish_reasons=reasons,
                duration_seconds=round(seconds, 6),
            )
        )
