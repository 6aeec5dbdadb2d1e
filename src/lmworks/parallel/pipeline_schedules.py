"""Pipeline schedules by name: torch's classes, how stages lie on ranks, and what each asks of the numbers.

Knows no model. `bubble.py` says how long ranks wait under each, `pipeline.py` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lmworks.core.errors import ParallelError

ScheduleName = Literal["gpipe", "1f1b", "interleaved_1f1b", "zb_h1", "zbv", "dualpipev"]


@dataclass(frozen=True)
class ScheduleKind:
    """What a schedule is made of."""

    torch_class: str
    """In `torch.distributed.pipelining`."""
    stages_per_rank: int
    v_shaped: bool = False
    """Rank r holds stages r and 2 · ranks - 1 - r, so the first and the last are neighbors; else r, r + ranks, ..."""


SCHEDULES: dict[str, ScheduleKind] = {
    "gpipe": ScheduleKind("ScheduleGPipe", 1),  # arXiv:1811.06965
    "1f1b": ScheduleKind("Schedule1F1B", 1),  # PipeDream-flush, arXiv:2006.09503
    "interleaved_1f1b": ScheduleKind("ScheduleInterleaved1F1B", 2),  # arXiv:2104.04473
    "zb_h1": ScheduleKind("ScheduleInterleavedZeroBubble", 1),  # arXiv:2401.10241
    "zbv": ScheduleKind("ScheduleZBVZeroBubble", 2, v_shaped=True),  # arXiv:2401.10241, section 6
    "dualpipev": ScheduleKind("ScheduleDualPipeV", 2, v_shaped=True),  # arXiv:2412.19437
}


def stage_ranks(schedule: ScheduleName, ranks: int) -> dict[int, int]:
    """The rank that holds each stage, by stage."""
    kind = SCHEDULES[schedule]
    stages = range(kind.stages_per_rank * ranks)
    if kind.v_shaped:
        return {stage: min(stage, len(stages) - 1 - stage) for stage in stages}
    return {stage: stage % ranks for stage in stages}


def require_schedule(schedule: ScheduleName, ranks: int, num_microbatches: int) -> None:
    """Check that a schedule can run so many micro-batches over so many ranks.

    Raises:
        ParallelError: it cannot, with the rule.
    """
    if schedule not in SCHEDULES:
        raise ParallelError(
            f"there is no pipeline schedule {schedule!r}", f"Choose one of {', '.join(get_args(ScheduleName))}"
        )
    stages = len(stage_ranks(schedule, ranks))
    least = {"1f1b": ranks, "dualpipev": stages}.get(schedule, 1)
    if num_microbatches < least:
        raise ParallelError(
            f"the schedule {schedule} needs at least {least} micro-batches for {stages} stages on {ranks} ranks, not "
            f"{num_microbatches}",
            "Accumulate over more micro-batches, or choose another schedule",
        )
    rounds = max(1, num_microbatches // ranks)
    if schedule in ("interleaved_1f1b", "zb_h1") and num_microbatches % rounds:
        raise ParallelError(
            f"the schedule {schedule} runs {num_microbatches} micro-batches over {ranks} ranks in {rounds} rounds, "
            "which do not divide them",
            f"Choose a multiple of {ranks} micro-batches",
        )


def build_schedule(schedule: ScheduleName, stages: list[Any], num_microbatches: int, **arguments: Any) -> Any:
    """Torch's schedule over the caller's stages, which adds gradients up and never divides them.

    Args:
        schedule: its name.
        stages: `PipelineStage`s of the calling rank, in ascending order.
        num_microbatches: of every step.
        arguments: passed on.
    """
    import torch.distributed.pipelining as pipelining  # slow to import

    kind = SCHEDULES[schedule]
    made = getattr(pipelining, kind.torch_class)
    held = stages if issubclass(made, pipelining.schedules.PipelineScheduleMulti) else stages[0]
    # By default torch divides what was accumulated in `grad`, earlier steps included, at the end of each step.
    return made(held, num_microbatches, scale_grads=False, **arguments)
