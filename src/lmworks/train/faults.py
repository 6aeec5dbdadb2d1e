"""Faults on purpose: rows whose loss or gradient goes wrong, ranks that stall or die, to prove what is done about them.

Knows no trainer: it stands between a run and its data and objective.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss

Fault = Callable[[Loss], Loss]


class RowSource(Protocol):
    """Data as a function of the row's number."""

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1`, packed."""
        ...


def nan_loss(loss: Loss) -> Loss:
    """The sum, and so every gradient, becomes not a number."""
    return replace(loss, loss_sum=loss.loss_sum * float("nan"))


def infinite_gradient(loss: Loss) -> Loss:
    """The loss stays as it is and its gradient overflows."""

    def overflow(gradient: Tensor) -> Tensor:
        return gradient * float("inf")

    if loss.loss_sum.requires_grad:
        loss.loss_sum.register_hook(overflow)
    return loss


def spike(factor: float) -> Fault:
    """Loss and gradient become `factor` times as large."""

    def apply(loss: Loss) -> Loss:
        return replace(loss, loss_sum=loss.loss_sum * factor)

    return apply


def stalled(seconds: float) -> Fault:
    """The rank that has the row stands still for a while; its numbers stay as they are."""

    def apply(loss: Loss) -> Loss:
        time.sleep(seconds)
        return loss

    return apply


def killed(loss: Loss) -> Loss:
    """The process of the rank that has the row ends as by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)
    return loss


class FaultInjector:
    """Data and objective of a run in which some rows are bad. Pass it as both.

    Batches are recognized by their tokens, so devices and prefetching change nothing; pieces of rows, as `context`
    makes them, are not recognized.

    Args:
        rows: the data.
        objective: the loss.
        faults: what happens to a batch that holds the row of this number.
        times: how often each row is bad; None: always. A fault of the hardware is bad once, a bad sample always.
    """

    def __init__(
        self,
        rows: RowSource,
        objective: Callable[[Any, Batch], Loss],
        faults: Mapping[int, Fault],
        *,
        times: int | None = None,
    ) -> None:
        self._rows, self._objective, self._faults = rows, objective, faults
        self._left: dict[int, int | None] = dict.fromkeys(faults, times)
        self._bad: dict[tuple[int, ...], list[int]] = {}

    def rows(self, start: int, count: int) -> Batch:
        """The rows themselves, unchanged."""
        batch = self._rows.rows(start, count)
        if bad := [row for row in self._faults if start <= row < start + count]:
            self._bad[tuple(batch.input_ids.tolist())] = bad
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The loss, with the faults of the rows in `batch`."""
        loss = self._objective(model, batch)
        for row in self._bad.get(tuple(batch.input_ids.tolist()), ()):
            left = self._left[row]
            if left != 0:
                loss = self._faults[row](loss)
                self._left[row] = None if left is None else left - 1
        return loss
