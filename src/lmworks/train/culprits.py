"""Which rows made a step go wrong: the loss of each alone, after the fact. Knows no trainer and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss

MOST = 8
"""Rows that are named."""


def culprits(
    model: nn.Module, objective: Callable[[Any, Batch], Loss], row: Callable[[int], Batch], first: int, count: int
) -> list[int]:
    """Rows whose loss alone is not finite; else those far above the median row; [] when all are alike.

    A fault that is gone when the rows are read again was not theirs: it was the machine's, or the weights'.

    Args:
        model: in the precision of the forward pass, with the weights that the step saw.
        objective: the loss.
        row: gives one row of data.
        first: number of the step's first row.
        count: rows of the step.
    """
    training = model.training
    model.eval()  # without dropout, and without moving running statistics
    losses: dict[int, float] = {}
    for number in range(first, first + count):
        loss = objective(model, row(number))
        if (targets := float(loss.n_targets)) > 0:
            losses[number] = float(loss.loss_sum.detach()) / targets
    model.train(training)
    broken = [number for number, loss in losses.items() if not math.isfinite(loss)]
    if broken or not losses:
        return broken[:MOST]
    middle = sorted(losses.values())[len(losses) // 2]
    high = [number for number, loss in losses.items() if loss > 1.5 * middle]
    return sorted(sorted(high, key=losses.__getitem__, reverse=True)[:MOST])
