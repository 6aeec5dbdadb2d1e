"""Which rows, or which ranks, made a step go wrong, found after the fact. Knows no trainer and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lmworks.nn.batch import Batch
from lmworks.train.step import Objective, Working

MOST = 8
"""Rows that are named."""

RowSums = dict[int, tuple[float, float]]
"""Sum of losses and number of targets by row."""


def measure_rows(
    working: Working, objective: Objective, row: Callable[[int], Batch], numbers: Iterable[int]
) -> RowSums:
    """The loss of each row alone.

    Args:
        working: the model with the weights that the step saw.
        objective: the loss.
        row: gives one row of data.
        numbers: of the rows; on every rank equally many.
    """
    training = working.model.training
    working.model.eval()  # without dropout, and without moving running statistics
    sums: RowSums = {}
    for number in numbers:
        batch = row(number)
        loss = working.call(lambda model, batch=batch: objective(model, batch))  # type: ignore[misc]  # bound now
        sums[number] = float(loss.loss_sum.detach()), float(loss.n_targets)
    working.model.train(training)
    return sums


def culprits(measured: Iterable[Mapping[int, tuple[float, float]]]) -> list[int]:
    """Rows whose loss alone is not finite; else those far above the median row; [] when all are alike.

    A fault that is gone when the rows are read again was not theirs: it was the machine's, or the weights'.

    Args:
        measured: what each rank found. Ranks that share a row have parts of it, or all of them the whole.
    """
    totals: RowSums = {}
    for found in measured:
        for number, (loss_sum, n_targets) in found.items():
            before = totals.get(number, (0.0, 0.0))
            totals[number] = before[0] + loss_sum, before[1] + n_targets
    losses = {number: loss_sum / targets for number, (loss_sum, targets) in totals.items() if targets > 0}
    broken = [number for number, loss in losses.items() if not math.isfinite(loss)]
    if broken or not losses:
        return sorted(broken)[:MOST]
    middle = sorted(losses.values())[len(losses) // 2]
    high = [number for number, loss in losses.items() if loss > 1.5 * middle]
    return sorted(sorted(high, key=losses.__getitem__, reverse=True)[:MOST])


def culprit_ranks(bad: Sequence[int], measured: Sequence[RowSums], finite: Sequence[bool]) -> list[int]:
    """Ranks that have the bad rows; where no row is bad, those whose loss alone was not finite in the step.

    Args:
        bad: the culprits.
        measured: what each rank found.
        finite: by rank, whether its share of the step's loss was. Weights that are bad are so on all ranks.
    """
    if bad:
        return [rank for rank, found in enumerate(measured) if not found.keys().isdisjoint(bad)]
    return [rank for rank, good in enumerate(finite) if not good] if any(finite) else []


def blame(bad: Sequence[int], ranks: Sequence[int], world_size: int) -> str:
    """The end of a sentence that names rows and ranks; "" where nobody is to blame."""
    named = f"; bad rows: {', '.join(map(str, bad))}" if bad else ""
    if world_size == 1 or not ranks:
        return named
    who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    return f"{named} ({who})" if bad else f"; it was so on {who} alone, whose rows are good when read again"
