"""Whether an update is made: loss and gradient are judged once, in one place, before the optimizer.

A step that is not finite, or far above the rolling median, is recorded, skipped, rewound past or ends the run, as
configured. What the guard remembers is saved with the weights, so a resumed run decides as one that never stopped.
Knows no model, no files and no data: rows are numbers here.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lmworks.core.config import Config

Action = Literal["update", "record", "skip", "rewind", "halt"]
"""`update` and `record` change the weights, the others leave them."""


class GuardConfig(Config):
    """What happens to a step whose loss or gradient cannot be trusted."""

    nonfinite: Literal["skip", "rewind", "halt"] = "halt"
    """When loss or gradient is not finite. `skip` goes on with the next rows; `rewind` returns to the last checkpoint
    and goes on there with rows not yet seen (PaLM, arXiv:2204.02311, section 5.1); `halt` ends the run."""
    spike: Literal["record", "skip", "rewind", "halt"] = "record"
    """When loss or gradient norm is far above its rolling median; `record` notes it and updates."""
    threshold: Annotated[float, Field(gt=0)] = 6.0
    """How many deviations above the median are a spike. A deviation is 1.4826 times the median distance to the median,
    a standard deviation where values are normal, and never less than a hundredth of the median."""
    window: Annotated[int, Field(ge=4)] = 128
    """Updates whose median counts; nothing is a spike before half of them are there."""
    max_in_a_row: Annotated[int, Field(gt=0)] = 10
    """Steps skipped or rewound without getting past them; one more halts."""


class Finding(IntEnum):
    """What is wrong with a step. Ordered: where ranks differ, the greatest of theirs is true for all."""

    FINE = 0
    SPIKE = 1
    OVERFLOW = 2
    """A float16 gradient, which a lower loss scale will mend."""
    NONFINITE = 3


@dataclass(frozen=True)
class Verdict:
    """The decision on one step."""

    finding: Finding
    action: Action
    reason: str
    """In words; empty when all is well."""

    @property
    def updates(self) -> bool:
        """Whether the weights are to be changed."""
        return self.action in ("update", "record")


class StepGuard:
    """Judges every step of a run, and counts what it did.

    Args:
        config: what is done when.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self.rows_passed = 0
        """Rows left out by rewinding; the data of all later steps lies so much further on."""
        self.events = 0
        """Verdicts other than `update` so far."""
        self._in_a_row = 0
        self._furthest = -1

    def judge(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        *,
        can_rescale: bool = False,
        agree: Callable[[int], int] = int,
    ) -> Verdict:
        """Decide on a step.

        Args:
            step: its number, counted from 0.
            loss: nats per target over all micro-batches.
            grad_norm: global norm before clipping.
            can_rescale: a lower loss scale is left to try.
            agree: the greatest of what all ranks find.
        """
        finding, reason = self._find(loss, grad_norm, can_rescale)
        if (agreed := Finding(agree(finding))) != finding:
            finding, reason = agreed, f"another rank finds a step to be {agreed.name.lower()}"
        action = self._action(finding)
        if action in ("skip", "rewind") and finding is not Finding.OVERFLOW:
            self._in_a_row += 1
            self._furthest = max(self._furthest, step)
            if self._in_a_row > self.config.max_in_a_row:
                action, reason = "halt", f"{reason}, after {self.config.max_in_a_row} such steps in a row"
        elif action in ("update", "record"):
            self._losses.append(loss)
            self._norms.append(grad_norm)
            if step > self._furthest:
                self._in_a_row = 0
        self.events += action != "update"
        return Verdict(finding, action, reason)

    def rewound(self, state: Mapping[str, Tensor], rows: int) -> None:
        """Take back the figures of a checkpoint, but not what was learned of bad rows.

        Args:
            state: what `state_dict` gave when the checkpoint was written.
            rows: from the checkpoint's step through the bad one, left out from now on.
        """
        kept = self.rows_passed + rows, self.events, self._in_a_row, self._furthest
        self.load_state_dict(state)
        self.rows_passed, self.events, self._in_a_row, self._furthest = kept

    def state_dict(self) -> dict[str, Tensor]:
        """What later decisions depend on, as tensors of fixed shapes."""
        return {
            "losses": _padded(self._losses, self.config.window),
            "grad_norms": _padded(self._norms, self.config.window),
            "counts": torch.tensor([self.rows_passed, self.events, self._in_a_row, self._furthest]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        for values, name in ((self._losses, "losses"), (self._norms, "grad_norms")):
            values.clear()
            values.extend(value for value in state[name].tolist() if not math.isnan(value))
        self.rows_passed, self.events, self._in_a_row, self._furthest = map(int, state["counts"].tolist())

    def _find(self, loss: float, grad_norm: float, can_rescale: bool) -> tuple[Finding, str]:
        if not math.isfinite(loss):
            return Finding.NONFINITE, f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            finding = Finding.OVERFLOW if can_rescale else Finding.NONFINITE
            return finding, f"the gradient norm is {grad_norm}"
        for name, value, past in (("loss", loss, self._losses), ("gradient norm", grad_norm, self._norms)):
            limit = spike_limit(past, self.config.threshold) if 2 * len(past) >= self.config.window else math.inf
            if value > limit:
                return Finding.SPIKE, f"the {name} is {value:.4g}, above the {limit:.4g} that the last steps allow"
        return Finding.FINE, ""

    def _action(self, finding: Finding) -> Action:
        by_finding: dict[Finding, Action] = {
            Finding.FINE: "update",
            Finding.SPIKE: self.config.spike,
            Finding.OVERFLOW: "skip",
            Finding.NONFINITE: self.config.nonfinite,
        }
        return by_finding[finding]


def spike_limit(past: Sequence[float] | deque[float], threshold: float) -> float:
    """The largest value that is no spike: median + threshold · deviation.

    Median and median distance, unlike mean and variance, are not moved by the spikes among `past`.
    """
    median = statistics.median(past)
    distance = statistics.median(abs(value - median) for value in past)
    return median + threshold * max(1.4826 * distance, 0.01 * abs(median))


def _padded(values: deque[float], size: int) -> Tensor:
    """[size] float64, NaN after the values."""
    return torch.tensor([*values, *[math.nan] * (size - len(values))], dtype=torch.float64)
