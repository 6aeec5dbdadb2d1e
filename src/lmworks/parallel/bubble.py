"""How long ranks of a pipeline wait for each other: a formula for each schedule, and the timeline that it sums up.

Runs nothing: the timeline is played from the order of computations that torch's schedule prescribes, each starting
when its rank is free and what it needs is there. So a mesh can be judged that does not exist.

Legend: `p` ranks, `m` micro-batches, `F` forward, `I` backward to the input, `W` backward to the weights of one stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import nn

from lmworks.parallel.pipeline_schedules import SCHEDULES, ScheduleName, build_schedule, require_schedule, stage_ranks


class Computation(NamedTuple):
    """One stage's work on one micro-batch."""

    stage: int
    kind: str
    """"F", "I", "W", or "B" for I and W together."""
    micro_batch: int


@dataclass(frozen=True)
class Durations:
    """Of the computations of one stage, in any unit."""

    forward: float = 1.0
    input: float = 1.0
    weight: float = 1.0
    transfer: float = 0.0
    """From a rank to another."""

    def of(self, kind: str) -> float:
        """Of a computation's kind."""
        return {"F": self.forward, "I": self.input, "W": self.weight, "B": self.input + self.weight}[kind]


@dataclass(frozen=True)
class Timeline:
    """When each rank does what."""

    spans: dict[int, list[tuple[float, float, Computation]]]
    """Begin and end of each rank's computations."""

    @property
    def length(self) -> float:
        """From the first computation to the end of the last."""
        return max(spans[-1][1] for spans in self.spans.values())

    @property
    def bubble_share(self) -> float:
        """Share of the ranks' time in which they wait."""
        busy = sum(end - begin for spans in self.spans.values() for begin, end, _ in spans)
        return 1 - busy / (self.length * len(self.spans))


def computation_order(schedule: ScheduleName, ranks: int, num_microbatches: int) -> dict[int, list[Computation]]:
    """What each rank computes in which order.

    Raises:
        ParallelError: the schedule cannot run so.
    """
    require_schedule(schedule, ranks, num_microbatches)
    if schedule == "1f1b":  # torch 2.13 lists another order here than it runs, one micro-batch off on the last rank
        return {rank: _one_by_one(rank, ranks - rank, num_microbatches) for rank in range(ranks)}
    count = SCHEDULES[schedule].stages_per_rank
    # torch reads of a stage only what is here, and knows the order of all ranks from one.
    stages = [
        SimpleNamespace(num_stages=count * ranks, group_size=ranks, group_rank=0, stage_index=i, submod=nn.Identity())
        for i in range(count)
    ]
    planned = build_schedule(schedule, stages, num_microbatches).pipeline_order
    return {rank: [c for action in actions for c in _computations(action)] for rank, actions in planned.items()}


def simulate(schedule: ScheduleName, ranks: int, num_microbatches: int, durations: Durations) -> Timeline:
    """Play a schedule.

    Raises:
        ParallelError: the schedule cannot run so.
    """
    waiting = computation_order(schedule, ranks, num_microbatches)
    place = stage_ranks(schedule, ranks)
    ends: dict[tuple[int, str, int], float] = {}
    spans: dict[int, list[tuple[float, float, Computation]]] = {rank: [] for rank in waiting}
    while any(waiting.values()):
        moved = False
        for rank, computations in waiting.items():
            while computations and (ready := _ready(computations[0], ends, place, durations)) is not None:
                done = computations.pop(0)
                begin = max(ready, spans[rank][-1][1] if spans[rank] else 0.0)
                end = begin + durations.of(done.kind)
                spans[rank].append((begin, end, done))
                for part in "IW" if done.kind == "B" else done.kind:
                    ends[done.stage, part, done.micro_batch] = end
                moved = True
        assert moved, "a schedule of torch does not wait for itself"
    return Timeline(spans)


def predicted_bubble_share(schedule: ScheduleName, ranks: int, num_microbatches: int, durations: Durations) -> float:
    """Share of the ranks' time in which they wait, by a formula, transfers left out.

    The wait is p - 1 times: F + I + W of a stage for gpipe and 1f1b (arXiv:2006.09503) and interleaved_1f1b
    (arXiv:2104.04473), F + I - W for zb_h1 (arXiv:2401.10241). Of the V-shaped schedules it is I for zbv where
    F <= I and W <= I, and F + I - W for dualpipev where the three are equal; else `simulate` says more. Begin and end
    of a step are counted, as the optimizer waits for all ranks. Micro-batches fill the pipeline and are a multiple
    of p.
    """
    forward, to_input, to_weight = durations.forward, durations.input, durations.weight
    whole = forward + to_input + to_weight
    stages = SCHEDULES[schedule].stages_per_rank
    wait = (ranks - 1) * {
        "gpipe": whole,
        "1f1b": whole,
        "interleaved_1f1b": whole,
        "zb_h1": forward + to_input - to_weight,
        "zbv": to_input,
        "dualpipev": forward + to_input - to_weight,
    }[schedule]
    return wait / (num_microbatches * stages * whole + wait)


def _one_by_one(stage: int, ahead: int, num_microbatches: int) -> list[Computation]:
    """Some forward passes ahead, then a backward and a forward pass in turn."""
    order = [Computation(stage, "F", i) for i in range(min(ahead, num_microbatches))]
    for i in range(num_microbatches):
        order.append(Computation(stage, "B", i))
        if i + ahead < num_microbatches:
            order.append(Computation(stage, "F", i + ahead))
    return order


def _computations(action: Any) -> list[Computation]:
    """Of one of torch's actions; none for a gap or communication."""
    if action is None:
        return []
    if action.sub_actions is not None:
        return [c for part in action.sub_actions for c in _computations(part)]
    kind = action.computation_type.value
    return [Computation(action.stage_index, kind, action.microbatch_index)] if kind in ("F", "I", "W", "B") else []


def _ready(
    computation: Computation, ends: dict[tuple[int, str, int], float], place: dict[int, int], durations: Durations
) -> float | None:
    """When what a computation needs is there; None while that is not known."""
    stage, kind, micro_batch = computation
    if kind == "W":
        return ends.get((stage, "I", micro_batch))
    needed = [(stage, "F")] if kind != "F" else []
    neighbor = stage - 1 if kind == "F" else stage + 1
    if neighbor in place:
        needed.append((neighbor, "F" if kind == "F" else "I"))
    moments = []
    for other, part in needed:
        end = ends.get((other, part, micro_batch))
        if end is None:
            return None
        moments.append(end + (durations.transfer if place[other] != place[stage] else 0.0))
    return max(moments, default=0.0)
