"""What a step takes of the machine: peak memory, and energy where the processor counts it. Knows no training."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the processor's energy counters (RAPL)."""


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: torch's on an accelerator, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class EnergyMeter:
    """Joules taken by all processor packages, other programs included; an upper estimate of a run's own.

    Args:
        folder: of the counters.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        packages = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self._counters = [path for path in packages if _read(path / "energy_uj") is not None]
        self._last = self._values()

    def joules(self) -> float | None:
        """Since the last call or the start; None where no counter can be read."""
        if not self._counters:
            return None
        before, self._last = self._last, self._values()
        total = 0
        for path, old, new in zip(self._counters, before, self._last, strict=True):
            wrapped = 0 if new >= old else (_read(path / "max_energy_range_uj") or 0)
            total += new - old + wrapped
        return total / 1e6

    def _values(self) -> list[int]:
        return [_read(path / "energy_uj") or 0 for path in self._counters]


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or for the administrator alone
        return None
