"""Groups of exact and near duplicates, and which text of each is kept.

Candidates are texts that agree in all rows of a band, 14 bands of 8 rows over 5-grams as in FineWeb (Penedo et al.
2024), and every candidate pair is checked against a similarity threshold. Groups do not depend on the order of the
texts. Knows neither files nor splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmworks.data.deduplication.fingerprints import DedupConfig, Fingerprints
from lmworks.data.shuffle import mix

_PAIRS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Groups:
    """The outcome: texts fall into groups, exact ones inside near ones."""

    exact: NDArray[np.int64]
    """[texts] number of the first text with the same key."""
    near: NDArray[np.int64]
    """[texts] number of the first text in the same group of near duplicates."""
    keys: NDArray[np.uint64]
    """[texts, 2] a name of each text's near-duplicate group that does not depend on the texts' order."""


def find_groups(texts: Fingerprints, config: DedupConfig) -> Groups:
    """Group equal and similar texts.

    Args:
        texts: their fingerprints.
        config: similarity and banding; `exact`, `near` and `keep` are not looked at.
    """
    count = len(texts)
    if count == 0:
        none = np.empty(0, np.int64)
        return Groups(none, none, np.empty((0, 2), np.uint64))
    order = np.lexsort((np.arange(count), texts.keys[:, 1], texts.keys[:, 0]))
    begins = np.concatenate([[True], (texts.keys[order][1:] != texts.keys[order][:-1]).any(axis=1)])
    exact = np.empty(count, np.int64)
    exact[order] = order[begins][np.cumsum(begins) - 1]
    canonical = order[begins]  # one of each key, in the order of keys
    worded = canonical[texts.words[canonical] > 0]
    near = exact.copy()
    leaders = _link(texts.signatures, worded, config)
    roots = np.full(len(worded), count, np.int64)
    np.minimum.at(roots, leaders, worded)
    near[worded] = roots[leaders]
    near = near[exact]
    # The least key of a group is its name: `order` sorts by key, so a group's first in it has the least.
    first = np.full(count, count, np.int64)
    np.minimum.at(first, near[order], np.arange(count))
    return Groups(exact, near, texts.keys[order[first[near]]])


def choose(groups: Groups, texts: Fingerprints, config: DedupConfig) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Who stays.

    Returns:
        `(kept, winners)`: [texts] whether each stays, and the number of the text that is kept in its place, its own
        where it stays. A dropped text is an exact duplicate of its winner when both have one `groups.exact`.
    """
    count = len(texts)
    numbers = np.arange(count)
    leaders = groups.near if config.near else groups.exact if config.exact else numbers
    ranking = (numbers, texts.digests, texts.keys[:, 1], texts.keys[:, 0], -texts.characters)
    order = np.lexsort((*(ranking if config.keep == "longest" else ranking[:1]), leaders))
    begins = np.concatenate([[True], leaders[order][1:] != leaders[order][:-1]]) if count else np.empty(0, np.bool_)
    winners = np.empty(count, np.int64)
    winners[order] = order[begins][np.cumsum(begins) - 1] if count else order
    return winners == numbers, winners


def _link(signatures: NDArray[np.uint32], chosen: NDArray[np.int64], config: DedupConfig) -> NDArray[np.int64]:
    """For each of `chosen` the place of the least member of its group; similar signatures are joined transitively."""
    leader = list(range(len(chosen)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for band in range(config.bands if len(chosen) else 0):
        keys = _band_keys(signatures[band], chosen)
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        # Every member of a bucket is compared with the bucket's first; similar ones meet in other bands too.
        head = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        tails = np.flatnonzero(np.concatenate([[False], same]))
        for begin in range(0, len(tails), _PAIRS_AT_ONCE):
            some = tails[begin : begin + _PAIRS_AT_ONCE]
            pairs = np.stack([order[head[some]], order[some]])
            similar = _similarity(signatures, chosen[pairs]) >= config.threshold
            for one, other in pairs[:, similar].T.tolist():
                a, b = find(one), find(other)
                leader[max(a, b)] = min(a, b)
    return np.asarray([find(place) for place in range(len(leader))], np.int64)


def _band_keys(band: NDArray[np.uint32], chosen: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[chosen] one number for the rows of a band."""
    keys = np.zeros(len(chosen), np.uint64)
    for row in range(band.shape[1]):
        keys = mix(keys + band[chosen, row])
    return keys


def _similarity(signatures: NDArray[np.uint32], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """[pairs] share of the hashes that two texts have in common, which estimates their Jaccard similarity."""
    same = np.zeros(pairs.shape[1], np.int64)
    for band in signatures:
        same += (band[pairs[0]] == band[pairs[1]]).sum(axis=1)
    return same / (len(signatures) * signatures.shape[2])
