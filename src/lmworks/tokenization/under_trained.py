"""Entries of a vocabulary that a model hardly met in training, told by the rows of its output matrix.

Land and Bartolo, 2024 (arXiv:2405.05417): whatever text comes, the rows of tokens that are never right are all pushed
the same way, so they end up side by side. Some such tokens are known beforehand, reserved ones above all; an ordinary
entry that lies with them is suspicious. Knows no tokenizer and no file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8
"""Cosine from which an entry counts; complete words, once trained, stay below half of it."""
_TOGETHER = 0.95
"""Cosine of rows that training has not told apart."""
_MOST = 4096
"""Suspects that are compared with each other."""


def under_trained(head: NDArray[np.float32], suspects: Sequence[int]) -> list[int] | None:
    """Ids whose rows lie with those of unused tokens, the closest first.

    Args:
        head: `[V, E]`, the output matrix: the head's, or the embedding where both are one.
        suspects: ids that texts hardly ever make, such as reserved tokens; those that were trained after all do not
            harm, for they do not lie together.

    Returns:
        None where fewer than two suspects lie together, so that nothing shows what untrained means here.
    """
    rows = head - head.mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    asked = rows[list(suspects)[:_MOST]]
    alike = asked @ asked.T >= _TOGETHER
    largest = alike[np.argmax(alike.sum(1))] if len(asked) else np.zeros(0, bool)
    if largest.sum() < 2:
        return None
    center = asked[largest].mean(0)
    similarity = rows @ (center / np.linalg.norm(center))
    order = np.argsort(-similarity, kind="stable")
    return [int(i) for i in order[: int((similarity >= SIMILAR).sum())]]
