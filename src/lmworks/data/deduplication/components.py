"""Partitions of numbered things as arrays of leaders: the leader of a part is its least member. Knows no texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def joined_by(leaders: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The finest partition that is coarser than a given one and holds both of every pair in one part.

    Parts take the least of their neighbours' leaders all at once, again and again (Shiloach & Vishkin 1982).

    Args:
        leaders: [things] leader of each; a thing of its own leads itself.
        pairs: [2, pairs] things.
    """
    leaders = leaders.copy()
    while True:
        ends = leaders[pairs]
        apart = ends[0] != ends[1]
        if not apart.any():
            return leaders
        pairs, ends = pairs[:, apart], ends[:, apart]
        np.minimum.at(leaders, ends.max(axis=0), ends.min(axis=0))
        while not np.array_equal(above := leaders[leaders], leaders):
            leaders = above


def merged(count: int, *partitions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The finest partition of `count` things that is coarser than each of the given ones."""
    leaders = np.arange(count)
    for partition in partitions:
        leaders = joined_by(leaders, np.stack([np.arange(count), partition]))
    return leaders


def equal(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[things] leaders of the parts with equal rows of `keys`, [things] or [things, columns]."""
    columns = (keys if keys.ndim == 2 else keys[:, None]).T
    order = np.lexsort((np.arange(len(keys)), *columns))
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (columns[:, order[1:]] != columns[:, order[:-1]]).any(axis=0)
    leaders = np.empty(len(keys), np.int64)
    leaders[order] = order[begins][np.cumsum(begins) - 1]
    return leaders
