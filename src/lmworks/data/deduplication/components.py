"""Partitions of numbered things as arrays of leaders: the leader of a part is its least member. Knows no texts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def joined_by(leaders: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The finest partition that is coarser than a given one and holds both of every pair in one part.

    Parts take the least of their neighbors' leaders all at once, again and again (Shiloach & Vishkin 1982).

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


def joined_in_buckets(
    leaders: NDArray[np.int64],
    keys: NDArray[np.uint64],
    alike: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    neighbors: int | None = None,
) -> NDArray[np.int64]:
    """A partition in which things of one key that are alike are joined.

    All of a bucket are compared with its first, which joins what is there many times; where that leaves several parts,
    each with the next ones. Pairs that are in one part by then are not looked at.

    Args:
        leaders: [things] the partition so far.
        keys: [things]
        alike: tells of [2, pairs] things which pairs are to be joined.
        neighbors: compare each with so many after it, so that the work grows as the number of things, whatever the
            size of a bucket; None with all.
    """
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(order)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))

    def join(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
        pairs = order[np.stack([one, other])]
        pairs = pairs[:, leaders[pairs[0]] != leaders[pairs[1]]]
        return joined_by(leaders, pairs[:, alike(pairs)])

    left = np.arange(len(order))
    leaders = join(first, left)
    step = 0
    while neighbors is None or step < neighbors:
        step += 1
        if step & (step - 1) == 0:  # now and then, leave out the buckets that have become one part
            several = np.zeros(len(order), np.bool_)
            several[first[leaders[order[first]] != leaders[order]]] = True
            left = left[several[first[left]]]
        left = left[left + step < len(order)]
        left = left[first[left] == first[left + step]]
        if not len(left):
            break
        leaders = join(left, left + step)
    return leaders


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
