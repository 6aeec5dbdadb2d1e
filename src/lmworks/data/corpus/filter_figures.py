"""How well scores divide held-out texts into good and bad. Knows no filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmworks.core.progress import say


@dataclass(frozen=True)
class Measured:
    """How well a threshold divides held-out texts."""

    precision: float
    """Share of good texts among those kept; 1 where none is kept."""
    recall: float
    """Share of the good texts that is kept."""


def measure(scores: NDArray[np.float64], good: NDArray[np.bool_], threshold: float) -> Measured:
    """Precision and recall of keeping what scores at least a threshold."""
    kept = scores >= threshold
    right = int((kept & good).sum())
    return Measured(right / int(kept.sum()) if kept.any() else 1.0, right / max(int(good.sum()), 1))


def area_under_roc(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Chance that a good text scores above a bad one; equal scores count half."""
    bad = np.sort(scores[~good])
    below = np.searchsorted(bad, scores[good], "left") + np.searchsorted(bad, scores[good], "right")
    return float(below.sum() / 2 / max(len(bad) * int(good.sum()), 1))


def figures(scores: NDArray[np.float64], good: int, thresholds: Mapping[float, float]) -> dict[str, Any]:
    """What a manifest says of a filter; precision and recall at each threshold are also said aloud.

    Args:
        scores: [texts] of the good texts first; high is good.
        good: how many they are.
        thresholds: least scores, by what they are called.
    """
    is_good = np.arange(len(scores)) < good
    rows = []
    for name, threshold in thresholds.items():
        measured = measure(scores, is_good, threshold)
        say(f"threshold {name}: precision {measured.precision:.3f}, recall {measured.recall:.3f}")
        rows.append({"threshold": name, "precision": round(measured.precision, 4), "recall": round(measured.recall, 4)})
    return {
        "held_out_good": good,
        "held_out_bad": len(scores) - good,
        "area_under_roc": round(area_under_roc(scores, is_good), 4),
        "thresholds": rows,
    }
