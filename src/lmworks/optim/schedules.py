"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config

Steps = Annotated[int, Field(gt=0)]


class ScheduleConfig(Config):
    """A linear warm-up, then a shape; values are factors of the peak learning rate."""

    kind: Literal["cosine", "linear", "constant", "wsd", "step", "cyclic", "cosine_restarts", "inverse_sqrt"] = "cosine"
    """`cosine` (arXiv:1608.03983), `linear`, `constant`, or `wsd`: constant, then a linear decay over
    the last `decay_fraction` of the run (warm-up, stable, decay; arXiv:2404.06395). `step`: times `gamma` every
    `step_size` steps. `cyclic`: down and up again in straight lines, once in `cycle_steps` (arXiv:1506.01186).
    `cosine_restarts`: a cosine from peak to floor in every `cycle_steps` (arXiv:1608.03983). `inverse_sqrt`: one
    over the root of the steps in units of the warm-up (arXiv:1706.03762)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly to its peak."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the decaying shapes end."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run that `wsd` spends decaying."""
    step_size: Steps | None = None
    """Steps between two drops of `step`, counted from the end of the warm-up."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What `step` multiplies by at each drop."""
    cycle_steps: Steps | None = None
    """Length of one cycle of `cyclic` and `cosine_restarts`."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"step": "step_size", "cyclic": "cycle_steps", "cosine_restarts": "cycle_steps"}.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"kind {self.kind!r} needs {needed}, a number of steps")
        return self


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor of the peak learning rate at `step`, counted from 0, of a run of `steps` updates.

    The first update of a warm-up of w steps has factor 1/w, never 0, and the last update of a decaying
    shape is the last one above `min_lr_ratio`: the floor is reached at step `steps`.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    shape = _SHAPES[schedule.kind](schedule, step, steps)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape


def _progress(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Share of the run after the warm-up that is over."""
    return min(1.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps))


def _decay_steps(schedule: ScheduleConfig, steps: int) -> float:
    """Steps of the decay of `wsd`, which does not begin before the warm-up has ended."""
    return min(schedule.decay_fraction * steps, max(1, steps - schedule.warmup_steps))


def _cycle(schedule: ScheduleConfig, step: int) -> float:
    """Share of the present cycle that is over."""
    assert schedule.cycle_steps is not None, "validated with the configuration"
    return (step - schedule.warmup_steps) % schedule.cycle_steps / schedule.cycle_steps


def _drops(schedule: ScheduleConfig, step: int) -> int:
    assert schedule.step_size is not None, "validated with the configuration"
    return (step - schedule.warmup_steps) // schedule.step_size


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


_SHAPES: dict[str, Callable[[ScheduleConfig, int, int], float]] = {
    "cosine": lambda s, step, steps: _half_cosine(_progress(s, step, steps)),
    "linear": lambda s, step, steps: 1 - _progress(s, step, steps),
    "constant": lambda _s, _step, _steps: 1.0,
    "wsd": lambda s, step, steps: min(1.0, max(0.0, (steps - step) / _decay_steps(s, steps))),
    "step": lambda s, step, _steps: s.gamma ** _drops(s, step),
    "cyclic": lambda s, step, _steps: abs(1 - 2 * _cycle(s, step)),
    "cosine_restarts": lambda s, step, _steps: _half_cosine(_cycle(s, step)),
    "inverse_sqrt": lambda s, step, _steps: math.sqrt(max(1, s.warmup_steps) / max(1, step)),
}
"""From 1 at the end of the warm-up towards 0, for a schedule, a step after its warm-up, and the run's steps."""
