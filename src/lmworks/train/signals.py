"""Overfitting and divergence, said in words while a run can still be changed. Knows only its records.

What is said follows from the records alone, so a resumed run that reads them again says the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

WINDOW = 50
"""Steps whose median stands for the loss at a time."""
DIVERGED = 0.1
"""Share by which the loss must stand above its best."""
WORSE = 0.005
"""Share by which a validation figure must stand above its best."""
PATIENCE = 3
"""Measurements in a row that must be worse than the best."""


class RunWatch:
    """Is told every record, and answers with a sentence when something has become clear."""

    def __init__(self) -> None:
        self._recent: list[float] = []
        self._best_loss = math.inf
        self._diverged = False
        self._measured: list[tuple[int, float]] = []
        self._overfits = False

    def tell(self, record: Mapping[str, Any]) -> str | None:
        """What this record makes clear for the first time, or None.

        Args:
            record: of one step; `loss` and figures that begin with `validation_` count.
        """
        return self._divergence(record) or self._overfitting(record)

    def _divergence(self, record: Mapping[str, Any]) -> str | None:
        """The median loss of the last steps stands clearly above that of earlier ones."""
        if "loss" not in record:
            return None
        self._recent = [*self._recent[1 - WINDOW :], record["loss"]]
        if len(self._recent) < WINDOW:
            return None
        now = statistics.median(self._recent)
        self._best_loss = min(self._best_loss, now)
        was, self._diverged = self._diverged, now > (1 + DIVERGED) * self._best_loss
        if was or not self._diverged:
            return None
        return (
            f"the loss is moving away: {now:.3f} over the last {WINDOW} steps and {self._best_loss:.3f} at its best; "
            "a lower learning rate, a longer warm-up or `guard.spike: rewind` may help"
        )

    def _overfitting(self, record: Mapping[str, Any]) -> str | None:
        """Validation has been worse than its best for several measurements."""
        value = next((v for k, v in record.items() if k.startswith("validation_") and isinstance(v, float)), None)
        if value is None:
            return None
        self._measured.append((record["step"], value))
        step, best = min(self._measured, key=lambda pair: pair[1])
        last = self._measured[-PATIENCE:]
        overfits = len(last) == PATIENCE and all(s > step and v > (1 + WORSE) * best for s, v in last)
        was, self._overfits = self._overfits, overfits
        if was or not overfits:
            return None
        return (
            f"the model overfits: validation was best at step {step} with {best:.4f} and is {value:.4f} now; "
            "more data, fewer steps, more weight decay or dropout may help"
        )
