"""What a run leaves on record: one JSON object a step, and what share of the machine it used.

Knows no trainer and no model.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmworks.core.errors import disk_errors
from lmworks.train.resources import EnergyMeter, peak_memory_bytes


class MetricsLog:
    """Appends one JSON object per step to a file.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Forget everything after `step`, and a last line torn by a crash."""
        kept = [json.dumps(record) + "\n" for record in read_metrics(self.path) if record["step"] <= step]
        staging = self.path.with_name(f".{self.path.name}.tmp")
        with disk_errors(self.path):
            staging.write_text("".join(kept), encoding="utf-8")
            staging.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order; [] when there is none. A torn last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


class RunFigures:
    """What follows from a step's loss and time: speed, utilization, bits per byte, memory, energy.

    Args:
        dtype: of the forward pass. Its products are the yardstick of `mfu`, also where some of them are 8-bit.
        device: where the model is.
        flops_per_token: of forward and backward; None leaves `mfu` out.
        bytes_per_target: of text; None leaves `bits_per_byte` out.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, flops_per_token: float | None, bytes_per_target: float | None
    ) -> None:
        self._dtype, self._device = dtype, device
        self._flops_per_token, self._bytes_per_target = flops_per_token, bytes_per_target
        self._peak_flops = 0.0
        self._energy = EnergyMeter()

    def begin(self) -> None:
        """Measure the machine, before the first step."""
        if self._flops_per_token is not None:
            self._peak_flops = measure_peak_flops(self._dtype, self._device)
        self._energy.joules()

    def of_step(self, loss: float, tokens: int, seconds: float) -> dict[str, float]:
        """Figures of one step.

        Args:
            loss: nats per target; where not finite there are no bits per byte.
            tokens: that went through the model.
            seconds: that it took.
        """
        figures = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        if self._flops_per_token is not None:
            figures["mfu"] = self._flops_per_token * figures["tokens_per_second"] / self._peak_flops
        if self._bytes_per_target is not None and math.isfinite(loss):
            figures["bits_per_byte"] = loss / math.log(2) / self._bytes_per_target
        figures["peak_memory_bytes"] = peak_memory_bytes(self._device)
        if (joules := self._energy.joules()) is not None:
            figures["energy_joules"] = joules
        return figures


def measure_peak_flops(dtype: torch.dtype, device: torch.device | str = "cpu", size: int = 1536) -> float:
    """FLOP/s of a large square matrix product here and now: the yardstick of model FLOPs utilization.

    What this reaches, not the data sheet, is what a training step could reach. Takes about 0.2 s on two cores.
    """
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for an asynchronous device
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
