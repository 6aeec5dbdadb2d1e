"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from lmworks.core.config import Config


class ScheduleConfig(Config):
    """A linear warm-up, then one of four shapes; values are factors of the peak learning rate."""

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """`cosine` (arXiv:1608.03983), `linear`, `constant`, or `wsd`: constant, then a linear decay over
    the last `decay_fraction` of the run (warm-up, stable, decay; arXiv:2404.06395)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly to its peak."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the decaying shapes end."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run that `wsd` spends decaying."""


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor of the peak learning rate at `step`, counted from 0, of a run of `steps` updates.

    The first update of a warm-up of w steps has factor 1/w, never 0, and the last update of a decaying
    shape is the last one above `min_lr_ratio`: the floor is reached at step `steps`.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    shape = _SHAPES[schedule.kind](min(1.0, progress), schedule.decay_fraction * steps, steps - step)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape


_SHAPES: dict[str, Callable[[float, float, int], float]] = {
    "cosine": lambda progress, _decay, _left: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress, _decay, _left: 1 - progress,
    "constant": lambda _progress, _decay, _left: 1.0,
    "wsd": lambda _progress, decay, left: min(1.0, max(0.0, left / decay)),
}
"""From 1 at the end of the warm-up down to 0: `progress` after the warm-up, `decay` steps, steps `left`."""
