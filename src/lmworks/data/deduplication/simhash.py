"""SimHash (Charikar 2002): 64 bits of a text that differ in few places where its n-grams do.

It is an eighth of a MinHash signature's work to compare and a fiftieth of its size, and finds only close copies: three
bits of 64 was the distance of Manku et al. (2007) for web pages. Knows neither files nor which text stays.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from lmworks.data.deduplication.components import equal, joined_in_buckets
from lmworks.data.shingles import Shingles

BITS = 64
_TEXTS_AT_ONCE = 256


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


def similar(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """[texts] leaders of the groups that hashes at most `distance` bits apart make, transitively.

    Cut into `distance + 2` blocks, hashes that differ in so few bits agree in two blocks at least, so they meet in a
    bucket of one pair of blocks.

    Args:
        hashes: [texts].
        distance: from 0 to 14.
    """
    assert 0 <= distance <= 14, "blocks of fewer than four bits choose nothing"
    values, places = np.unique(hashes, return_inverse=True)

    def alike(pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        return differing_bits(values[pairs[0]], values[pairs[1]]) <= distance

    leaders = np.arange(len(values))
    edges = np.linspace(0, BITS, distance + 3).astype(int).tolist()
    masks = [((1 << end) - 1) ^ ((1 << begin) - 1) for begin, end in itertools.pairwise(edges)]
    for one, other in itertools.combinations(masks, 2):
        leaders = joined_in_buckets(leaders, values & np.uint64(one | other), alike)
    return equal(leaders[places].astype(np.uint64))


def differing_bits(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[n] Hamming distance of each to its opposite."""
    return np.unpackbits((one ^ other).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)
