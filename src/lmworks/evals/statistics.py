"""How sure is a number: bootstrap and Wilson intervals, and the paired difference between two models.

Everything is a function of its inputs and a seed. Knows no model and no task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap resamples: enough for two stable digits of a 95 % interval (Efron & Tibshirani 1993, chapter 19)."""
_CHUNK = 1 << 22
"""Resampled indices held at once, which bounds memory to some 64 MB."""


@dataclass(frozen=True)
class Interval:
    """A value with the interval that covers it at the stated confidence."""

    value: float
    low: float
    high: float
    n: int
    """Independent items behind the value."""


@dataclass(frozen=True)
class Difference:
    """How much `a` exceeds `b` on the same items."""

    value: float
    low: float
    high: float
    n: int
    p_value: float
    """Two-sided: how often a resample centered on zero is at least as far from zero as `value`."""


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int, confidence: float = 0.95
) -> Interval:
    """Percentile interval of sum(numerators) / sum(denominators), resampling items.

    The ratio of sums weighs each item by its size: bits per byte of a collection is this, not the mean of the
    documents' own ratios.

    Args:
        numerators: one figure per item, such as bits.
        denominators: one positive size per item, such as bytes; ones give the mean.
        seed: of the resampling.
        confidence: share of resamples inside the interval.

    Raises:
        ValueError: no item, lengths that differ, or a total size of zero.
    """
    top, bottom = _checked(numerators, denominators)
    resampled = _resampled_ratios(top, bottom, seed)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def bootstrap_mean(values: Sequence[float], *, seed: int, confidence: float = 0.95) -> Interval:
    """Percentile interval of the mean of `values`, resampling items."""
    return bootstrap_ratio(values, [1.0] * len(values), seed=seed, confidence=confidence)


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (1927): honest near 0 and 1 and for few items, unlike ± z·σ.

    Raises:
        ValueError: `n` is not positive or `successes` is not between 0 and `n`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} items is no proportion: need 0 <= successes <= n and n >= 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, center - half), min(1.0, center + half), n)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    denominators: Sequence[float] | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two models' figures on the same items, resampling items and not models.

    Pairing removes what the items contribute to both (an easy document is easy for both), so it tells apart models
    whose separate intervals overlap.

    Args:
        a: the first model's figure per item.
        b: the second's, in the same order.
        denominators: size per item, as in `bootstrap_ratio`; None means ones.
        seed: of the resampling.
        confidence: share of resamples inside the interval.
    """
    if len(a) != len(b):
        raise ValueError(f"paired figures must be of the same items: got {len(a)} and {len(b)}")
    top, bottom = _checked(np.subtract(a, b), denominators if denominators is not None else [1.0] * len(a))
    value = float(top.sum() / bottom.sum())
    resampled = _resampled_ratios(top, bottom, seed)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    # Centered on zero, the resamples are the null distribution; the +1 keeps p above zero (Davison & Hinkley 1997).
    extreme = np.count_nonzero(np.abs(resampled - value) >= abs(value))
    return Difference(value, float(low), float(high), len(top), float((extreme + 1) / (len(resampled) + 1)))


def _checked(
    numerators: Sequence[float] | NDArray[np.float64], denominators: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(top) == 0 or len(top) != len(bottom):
        raise ValueError(f"need as many figures as sizes and at least one: got {len(top)} and {len(bottom)}")
    if (bottom < 0).any() or bottom.sum() <= 0:
        raise ValueError("sizes must not be negative and must not all be zero")
    return top, bottom


def _resampled_ratios(top: NDArray[np.float64], bottom: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """`[RESAMPLES]` ratios of sums, each over as many items as there are, drawn with replacement."""
    generator, n = np.random.default_rng(seed), len(bottom)
    ratios = np.empty(RESAMPLES)
    step = max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, step):
        picked = generator.integers(0, n, size=(min(step, RESAMPLES - start), n))
        sizes = bottom[picked].sum(axis=1)
        ratios[start : start + len(picked)] = top[picked].sum(axis=1) / np.maximum(sizes, np.finfo(float).tiny)
    return ratios
