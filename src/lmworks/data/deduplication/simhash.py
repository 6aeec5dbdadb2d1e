"""SimHash (Charikar 2002): 64 bits of a text that differ in few places where its n-grams do.

It is an eighth of a MinHash signature's work to compare and a fiftieth of its size, and finds only close copies: three
bits of 64 was the distance of Manku et al. (2007) for web pages. Knows neither files nor which text stays.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from lmworks.data.deduplication.components import joined_by
from lmworks.data.shingles import Shingles

BITS = 64
_TEXTS_AT_ONCE = 256
_PAIRS_AT_ONCE = 1 << 20


def simhashes(shingles: Shingles, ngram: int) -> NDArray[np.uint64]:
    """[texts] each bit is that of most of a text's n-grams; 0 on a tie."""
    values = np.empty(len(shingles), np.uint64)
    for begin in range(0, len(shingles), _TEXTS_AT_ONCE):
        end = min(begin + _TEXTS_AT_ONCE, len(shingles))
        grams, counts = shingles.ngrams(ngram, begin, end)
        bits = np.unpackbits(grams.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1)
        ones = np.add.reduceat(bits, np.cumsum(counts) - counts, axis=0, dtype=np.int32)
        values[begin:end] = np.packbits(2 * ones > counts[:, None], axis=1).view("<u8").ravel()
    return values


def close_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """[2, pairs] places of all hashes that differ in at most `distance` bits; of equal ones, all with the first.

    Cut into `distance + 2` blocks, hashes that differ in so few bits agree in two blocks at least, so they meet in a
    sorted table of one pair of blocks.

    Args:
        hashes: [n].
        distance: from 0 to 14.
    """
    assert 0 <= distance <= 14, "blocks of fewer than four bits choose nothing"
    values, first, places = np.unique(hashes, return_index=True, return_inverse=True)
    found = [np.stack([first[places], np.arange(len(hashes))])]
    found[0] = found[0][:, found[0][0] != found[0][1]]
    edges = np.linspace(0, BITS, distance + 3).astype(int).tolist()
    masks = [((1 << end) - 1) ^ ((1 << begin) - 1) for begin, end in itertools.pairwise(edges)]
    for one, other in itertools.combinations(masks, 2):
        keys = values & np.uint64(one | other)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        # Members of a bucket at every distance from one another in its order, until no two are that far apart.
        left = np.arange(len(keys))
        for step in itertools.count(1):
            left = left[left + step < len(keys)]
            left = left[keys[left] == keys[left + step]]
            if not len(left):
                break
            for begin in range(0, len(left), _PAIRS_AT_ONCE):
                some = left[begin : begin + _PAIRS_AT_ONCE]
                pairs = np.stack([order[some], order[some + step]])
                near = differing_bits(values[pairs[0]], values[pairs[1]]) <= distance
                found.append(first[pairs[:, near]])
    return np.concatenate(found, axis=1)


def differing_bits(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[n] Hamming distance of each to its opposite."""
    return np.unpackbits((one ^ other).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)


def similar(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """[texts] leaders of the groups that hashes at most `distance` bits apart make, transitively."""
    return joined_by(np.arange(len(hashes)), close_pairs(hashes, distance))
