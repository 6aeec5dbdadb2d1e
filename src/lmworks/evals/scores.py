"""From figures per item to a number with its interval, and to the difference between two models.

Knows no model and no task beyond its metrics' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lmworks.evals.statistics import Interval, bootstrap_ratio, paired_difference, wilson
from lmworks.evals.task import Outcome


@dataclass(frozen=True)
class Metric:
    """How a metric is read and how sure it is."""

    higher_is_better: bool
    interval: Literal["wilson", "bootstrap"]
    """Wilson's for shares of right and wrong, the bootstrap for everything else."""


METRICS: dict[str, Metric] = {
    "bits_per_byte": Metric(False, "bootstrap"),
    "acc": Metric(True, "wilson"),
    "acc_norm": Metric(True, "wilson"),
    "exact_match": Metric(True, "wilson"),
    "contains": Metric(True, "wilson"),
    "f1": Metric(True, "bootstrap"),
    "answered": Metric(True, "wilson"),
}


@dataclass(frozen=True)
class Score:
    """One number about one model, ready for the report."""

    model: str
    task: str
    metric: str
    value: float
    low: float | None
    """95 % interval over items; None for a method that does not score items one by one."""
    high: float | None
    n: int
    clean_value: float | None
    """The value over items that the training text does not hold; None where unknown or meaningless."""
    higher_is_better: bool
    contaminated_value: float | None = None
    """The value over the items that it holds; None where there are none."""


@dataclass(frozen=True)
class Comparison:
    """How much `model`'s figure differs from `against`'s on the same items."""

    task: str
    metric: str
    model: str
    against: str
    difference: float
    low: float
    high: float
    p_value: float


def score(model: str, task: str, outcome: Outcome, found: Sequence[bool] | None, seed: int) -> list[Score]:
    """One score per metric of the outcome.

    Args:
        model: who was measured.
        task: on what.
        outcome: the figures per item.
        found: per item, whether the training text holds it; None when that was not asked.
        seed: of the bootstrap.
    """
    sizes = outcome.sizes or (1.0,) * len(next(iter(outcome.figures.values())))
    scores = []
    for name, figures in outcome.figures.items():
        metric = METRICS[name]
        interval = _interval(metric, figures, sizes, seed)
        clean, contaminated = (
            None if found is None else _mean(figures, sizes, [i for i, seen in enumerate(found) if seen is wanted])
            for wanted in (False, True)
        )
        scores.append(
            Score(model, task, name, interval.value, interval.low, interval.high, interval.n, clean,
                  metric.higher_is_better, contaminated)
        )  # fmt: skip
    return scores


def _mean(figures: Sequence[float], sizes: Sequence[float], chosen: Sequence[int]) -> float | None:
    return sum(figures[i] for i in chosen) / sum(sizes[i] for i in chosen) if chosen else None


def _interval(metric: Metric, figures: Sequence[float], sizes: Sequence[float], seed: int) -> Interval:
    if metric.interval == "wilson":
        return wilson(sum(figures), len(figures))
    return bootstrap_ratio(figures, sizes, seed=seed)


def compare(task: str, outcomes: Mapping[str, Outcome], seed: int) -> list[Comparison]:
    """Each model of `outcomes` against the first, metric by metric."""
    if not outcomes:
        return []
    (first, reference), *others = outcomes.items()
    comparisons = []
    for name, outcome in others:
        for metric, figures in outcome.figures.items():
            found = paired_difference(figures, reference.figures[metric], outcome.sizes, seed=seed)
            comparisons.append(Comparison(task, metric, name, first, found.value, found.low, found.high, found.p_value))
    return comparisons
