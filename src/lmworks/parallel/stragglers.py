"""Which rank is slow, step by step, and in what: seconds of each phase compared over ranks.

All ranks of a step end together, so their total times are alike. A slow rank is seen in the phase that makes it late,
where it alone is far above the others; what it makes the others wait is seen later, on all but it. Knows no trainer.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Straggler:
    """The slowest rank of some steps."""

    rank: int
    phase: str
    """Where it lost its time."""
    behind_seconds: float
    """A step, over the median of the ranks."""
    seconds: dict[str, list[float]]
    """A step, by phase and rank: the table that this was read from."""

    def sentence(self) -> str:
        """Such as `"rank 2 is slowest: 0.105 s a step in 'data', 0.100 s over the median"`."""
        spent = self.seconds[self.phase][self.rank]
        return (
            f"rank {self.rank} is slowest: {spent:.3f} s a step in {self.phase!r}, "
            f"{self.behind_seconds:.3f} s over the median"
        )


class Stragglers:
    """Adds up the seconds of the caller's phases, and compares them with the other ranks' when asked.

    Args:
        group: the ranks; their results are sums over the same number of steps.
        phases: in the order of a step; the same on all ranks.
        device: where the group communicates.
    """

    def __init__(self, group: dist.ProcessGroup, phases: Sequence[str], device: torch.device) -> None:
        self._group, self._device = group, device
        self._seconds = dict.fromkeys(phases, 0.0)

    def add(self, phase: str, seconds: float) -> None:
        """Count some time; phases that were not announced are left out."""
        if phase in self._seconds:
            self._seconds[phase] += seconds

    def compare(self, steps: int) -> Straggler:
        """The slowest rank since the last call, so many steps ago. Every rank calls this: one small collective."""
        own = torch.tensor(list(self._seconds.values()), dtype=torch.float64, device=self._device) / steps
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        everyone = [torch.empty_like(own) for _ in range(self._group.size())]
        dist.all_gather(everyone, own, group=self._group)
        by_phase = torch.stack(everyone, 1).tolist()
        return slowest(dict(zip(self._seconds, by_phase, strict=True)))


def slowest(seconds: dict[str, list[float]]) -> Straggler:
    """Read the slowest rank from a table.

    Being late comes before being waited for: of the phases where one rank is far above the others, the first counts.

    Args:
        seconds: by phase, in the order of a step, and rank.
    """
    found = []
    for phase, by_rank in seconds.items():
        # The lower of two middle ranks, so that one of two can stand out.
        excess = max(by_rank) - statistics.median_low(by_rank)
        found.append(Straggler(by_rank.index(max(by_rank)), phase, excess, seconds))
    largest = max(entry.behind_seconds for entry in found)
    return next(entry for entry in found if entry.behind_seconds >= largest / 2)
