"""Texts that say the same in other words, by their embeddings: SemDeDup (Abbas et al. 2023).

K-means puts like with like, so only texts of one cluster are compared; two alike that fall into different clusters are
missed, the more the more clusters there are. Knows no model: embeddings come from any `core.generation.Embedder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError

_ROWS_AT_ONCE = 4096
_COMPARED_AT_ONCE = 256
_TEXTS_PER_CLUSTER = 10_000
_SAMPLE_PER_CLUSTER = 256
_UNIT = 1e-5
"""How far a length may be from one and need no scaling."""


@dataclass(frozen=True)
class SemanticDuplicates:
    """Who stays."""

    kept: NDArray[np.bool_]
    """[texts]"""
    winners: NDArray[np.int64]
    """[texts] the kept text that each is close to, itself where it stays."""
    similarity: NDArray[np.float32]
    """[texts] cosine to the winner."""
    clusters: NDArray[np.int64]
    """[texts]"""


def semantic_duplicates(
    embeddings: NDArray[np.floating],
    threshold: float = 0.95,
    *,
    clusters: int | None = None,
    keep: Literal["hard", "easy", "first"] = "hard",
    iterations: int = 20,
    seed: int = 0,
    ranks: NDArray[np.integer] | None = None,
) -> SemanticDuplicates:
    """Drop texts that are close to one that is kept.

    A text is compared with kept ones alone, so every dropped text has one within the threshold; the paper also drops
    what is close to dropped ones.

    Args:
        embeddings: [texts, dimensions] of any length but zero; those of unit length in 32 bits may be mapped from a
            file and are not copied.
        threshold: least cosine of two duplicates.
        clusters: of k-means; None for one per ten thousand texts, so that fewer are compared with all.
        keep: whom to take first: `hard`, far from its cluster's center as in the paper; `easy`, near it; or the first.
        iterations: of k-means.
        seed: chooses the first centers.
        ranks: [texts] of `first`: the least comes first, of equals the one before; None for the order of the texts.

    Raises:
        DataError: an embedding is zero or not finite, or `threshold` or `clusters` is out of range.
    """
    vectors = np.asanyarray(embeddings, np.float32)
    if vectors.ndim != 2:
        raise DataError(f"embeddings of shape {vectors.shape} are no table", "Give one row for each text")
    parts = range(0, len(vectors), _ROWS_AT_ONCE)
    lengths = np.concatenate([np.empty(0), *(np.linalg.norm(vectors[p : p + _ROWS_AT_ONCE], axis=1) for p in parts)])
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        bad = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise DataError(f"embedding {bad} has length {lengths[bad]}", "Give finite embeddings other than zero")
    count = clusters if clusters is not None else max(-(-len(vectors) // _TEXTS_PER_CLUSTER), 1)
    if not (-1.0 <= threshold <= 1.0 and count >= 1):
        raise DataError(f"threshold {threshold}, clusters {count}", "Give a cosine, and one cluster or more")
    if (np.abs(lengths - 1) > _UNIT).any():
        vectors = (vectors / lengths[:, None]).astype(np.float32)
    centers = _k_means(vectors, min(count, len(vectors)), iterations, np.random.default_rng(seed))
    nearest, closeness = _nearest(vectors, centers)
    winners = np.arange(len(vectors))
    similarity = np.ones(len(vectors), np.float32)
    first = np.zeros(len(vectors), np.int64) if ranks is None else ranks
    ranking = {"hard": closeness, "easy": -closeness, "first": first}[keep]
    order = np.lexsort((winners, ranking, nearest))
    for members in np.split(order, np.flatnonzero(np.diff(nearest[order])) + 1):
        _thin(vectors, members, threshold, winners, similarity)
    return SemanticDuplicates(winners == np.arange(len(vectors)), winners, similarity, nearest)


def _thin(
    vectors: NDArray[np.float32],
    members: NDArray[np.int64],
    threshold: float,
    winners: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> None:
    """Give each member of one cluster, in order of rank, to the first kept one that it is close to."""
    left, near = members, vectors[members]
    while len(left):
        cosine = near[:_COMPARED_AT_ONCE] @ near.T
        free = np.ones(len(left), np.bool_)
        for place, row in enumerate(cosine):
            if free[place]:
                close = free & (row >= threshold)
                close[: place + 1] = False
                winners[left[close]], similarity[left[close]] = left[place], row[close]
                free[close] = False
        free[: len(cosine)] = False
        left, near = left[free], near[free]


def _k_means(
    vectors: NDArray[np.float32], count: int, iterations: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """[count, dimensions] centers of unit length, from a sample of the vectors (Lloyd 1982 on the sphere)."""
    sample = vectors[rng.permutation(len(vectors))[: count * _SAMPLE_PER_CLUSTER]]
    centers = sample[:count].copy()
    for _ in range(iterations):
        nearest, closeness = _nearest(sample, centers)
        sums = np.zeros_like(centers)
        np.add.at(sums, nearest, sample)
        sizes = np.bincount(nearest, minlength=count)
        # An empty cluster begins again at the vectors that are worst served.
        empty = np.flatnonzero(sizes == 0)
        sums[empty] = sample[np.argsort(closeness, kind="stable")[: len(empty)]]
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centers)
        if np.allclose(moved, centers, atol=1e-5):
            break
        centers = moved
    return centers


def _nearest(
    vectors: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[vectors] the center with the greatest cosine, and that cosine."""
    nearest, closeness = np.zeros(len(vectors), np.int64), np.zeros(len(vectors), np.float32)
    for begin in range(0, len(vectors), _ROWS_AT_ONCE):
        cosine = vectors[begin : begin + _ROWS_AT_ONCE] @ centers.T
        nearest[begin : begin + _ROWS_AT_ONCE] = cosine.argmax(axis=1)
        closeness[begin : begin + _ROWS_AT_ONCE] = cosine.max(axis=1)
    return nearest, closeness
