"""What may be done after a step besides training: a callback is a plain function that returns figures.

Evaluation inside training comes in this way, from whoever starts the run. Knows no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class StepEnd:
    """A step that is done."""

    step: int
    """Updates done so far."""
    steps: int
    """Updates of the whole run."""
    model: nn.Module
    """The updated weights in the precision of the forward pass."""
    loss: float
    """Nats per target on this step's batch, before the update."""


Callback = Callable[[StepEnd], Mapping[str, float]]
"""Returns figures that join the step's record; they must not depend on how often the run was resumed."""


def every(steps: int | None, callback: Callback) -> Callback:
    """Call `callback` after each `steps` updates and after the last; None means only the last."""

    def call(end: StepEnd) -> Mapping[str, float]:
        due = end.step == end.steps or (steps is not None and end.step % steps == 0)
        return callback(end) if due else {}

    return call


@runtime_checkable
class TellsSteps(Protocol):
    """An objective that does something of its own after each step, such as moving biases of routers."""

    def step_done(self, *, updated: bool, total: Callable[[Sequence[Tensor]], list[Tensor]]) -> Mapping[str, float]:
        """Called once per step, on every rank. Figures join the record.

        Args:
            updated: whether the weights were changed.
            total: sums over the ranks that saw other tokens.
        """
        ...
