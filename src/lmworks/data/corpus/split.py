"""Which documents are held out, decided by hashing groups of near duplicates and by what they share.

A document's side depends on its own group and the seed alone, so adding documents moves none of the
others; only a held-out document that repeats training text is moved. Knows neither files nor filters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.data.shingles import Shingles

OVERLAP_NGRAM = 13
"""Words of a run that counts as copied: the length GPT-3's overlap study used (Brown et al. 2020, appendix C)."""


def hold_out(group_keys: Sequence[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """[documents] True for those whose group falls into the held-out fraction.

    Raises:
        DataError: a fraction is asked for and fewer than two groups are there.
    """
    points = {key: _point(key, seed) for key in set(group_keys)}
    if fraction > 0.0:
        if len(points) < 2:
            raise DataError(
                f"{len(points)} documents cannot be divided into training and validation",
                "Give more documents, a smaller max_characters, or set validation_fraction to 0",
            )
        # At least one group on either side, however small the corpus.
        fraction = min(max(fraction, min(points.values())), sorted(points.values())[-2])
    return np.asarray([fraction > 0.0 and points[key] <= fraction for key in group_keys], dtype=np.bool_)


def _point(key: str, seed: int) -> float:
    """A point of [0, 1) that depends on key and seed."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def overlapping(shingles: Shingles, held_out: NDArray[np.bool_], max_overlap: float) -> NDArray[np.bool_]:
    """[documents] True for held-out documents that repeat training text in more than `max_overlap` of their 13-grams.

    Documents that move to training count as training text for the others.
    """
    grams, counts = shingles.ngrams(OVERLAP_NGRAM)
    owner = np.repeat(np.arange(len(counts)), counts)
    moved = np.zeros(len(counts), dtype=np.bool_)
    newly = ~held_out
    seen = np.zeros(len(grams), dtype=np.bool_)
    while newly.any() and (held_out & ~moved).any():
        candidates = (held_out & ~moved)[owner]
        seen[candidates] |= _contained(grams[candidates], grams[newly[owner]])
        share = np.bincount(owner, weights=seen, minlength=len(counts)) / counts
        newly = held_out & ~moved & (share > max_overlap)
        moved |= newly
    return moved


def _contained(few: NDArray[np.uint64], many: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """For each of `few` whether it is among `many`, which need not be sorted."""
    values, inverse = np.unique(few, return_inverse=True)
    places = np.minimum(np.searchsorted(values, many), len(values) - 1)
    found = np.zeros(len(values), dtype=np.bool_)
    found[places[values[places] == many]] = True
    return found[inverse]
