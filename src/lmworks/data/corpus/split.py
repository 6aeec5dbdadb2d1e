"""Which documents are held out, decided by hashing groups of near duplicates and by what they share.

A document's side depends on its own group and the seed alone, so adding documents moves none of the others; only a
held-out document that repeats training text is moved. Knows neither files nor filters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.data.shingles import Shingles
from lmworks.data.shuffle import mix

OVERLAP_NGRAM = 13
"""Words of a run that counts as copied: the length GPT-3's overlap study used (Brown et al. 2020, appendix C)."""


def hold_out(group_keys: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """[documents] True for those whose group falls into the held-out fraction.

    Args:
        group_keys: [documents, 2] names of groups.
        fraction: of the groups.
        seed: chooses among them.

    Raises:
        DataError: a fraction is asked for and fewer than two groups are there.
    """
    if fraction == 0.0:
        return np.zeros(len(group_keys), np.bool_)
    salt = mix(np.asarray([seed % (1 << 64)], np.uint64))
    points = mix(mix(group_keys[:, 0] ^ salt) + group_keys[:, 1])
    different = np.unique(points)
    if len(different) < 2:
        raise DataError(
            f"{len(different)} documents cannot be divided into training and validation",
            "Give more documents, a smaller max_characters, or set validation_fraction to 0",
        )
    # At least one group on either side, however small the corpus.
    bound = min(max(int(fraction * 2**64), int(different[0])), int(different[-2]))
    return points <= np.uint64(bound)


class HeldOutGrams:
    """The 13-grams of held-out texts, and which of them training text repeats.

    Args:
        texts: held out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        grams, self._counts = Shingles(texts).ngrams(OVERLAP_NGRAM)
        self._owner = np.repeat(np.arange(len(self._counts)), self._counts)
        self.grams, self._places = np.unique(grams, return_inverse=True)
        """Sorted and different."""

    def moved(self, seen: NDArray[np.bool_], max_overlap: float) -> NDArray[np.bool_]:
        """[texts] True for those that training text repeats in more than `max_overlap` of their 13-grams.

        Texts that move to training count as training text for the others.

        Args:
            seen: [grams] whether training text has each of `grams`.
            max_overlap: share.
        """
        seen = seen.copy()
        moved = np.zeros(len(self._counts), np.bool_)
        while True:
            share = np.bincount(self._owner, weights=seen[self._places], minlength=len(moved)) / self._counts
            newly = ~moved & (share > max_overlap)
            if not newly.any():
                return moved
            moved |= newly
            seen[self._places[newly[self._owner]]] = True


def contained(grams: NDArray[np.uint64], texts: Iterable[str]) -> NDArray[np.bool_]:
    """[grams] which of sorted different 13-grams occur in texts."""
    found = np.zeros(len(grams), np.bool_)
    theirs, _ = Shingles(texts).ngrams(OVERLAP_NGRAM)
    if len(grams) and len(theirs):
        places = np.minimum(np.searchsorted(grams, theirs), len(grams) - 1)
        found[places[grams[places] == theirs]] = True
    return found


def overlapping(
    held_out: Iterable[str], seen_by_training: Callable[[NDArray[np.uint64]], NDArray[np.bool_]], max_overlap: float
) -> NDArray[np.bool_]:
    """[held-out texts] True for those that repeat training text in more than `max_overlap` of their 13-grams.

    Args:
        held_out: texts.
        seen_by_training: given sorted 13-grams, tells which of them training text has.
        max_overlap: share.
    """
    held = HeldOutGrams(held_out)
    return held.moved(seen_by_training(held.grams), max_overlap)
