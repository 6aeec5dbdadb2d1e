"""Has the training text seen the test? Counts test items that share 13 consecutive words with it.

The 13-gram rule of GPT-3's appendix C (arXiv:2005.14165) on words that are lower-cased runs of letters and digits.
Every training 13-gram is kept as a 64-bit hash in one sorted array: a million words take two seconds. Counts are
reported beside every score; nothing is dropped. Knows no tasks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NGRAM = 13
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying modulo 2^64 loses nothing


@dataclass(frozen=True)
class Overlap:
    """How many items were found in the training text."""

    items: int
    testable: int
    """Items of at least `NGRAM` words; a shorter one cannot be told from chance."""
    found: tuple[bool, ...]
    """Per item, whether the training text holds a gram of it."""

    @property
    def overlapping(self) -> int:
        """Items found in the training text."""
        return sum(self.found)


class NgramIndex:
    """The set of all word n-grams of some documents; grams do not reach across documents.

    Args:
        documents: the training text.
        n: words per gram.
    """

    def __init__(self, documents: Iterable[str], n: int = NGRAM) -> None:
        self.n = n
        self._numbers: dict[str, int] = {}
        grams = [
            self._grams([self._numbers.setdefault(w, len(self._numbers) + 1) for w in words(d)]) for d in documents
        ]
        self._hashes = np.unique(np.concatenate(grams)) if grams else np.empty(0, np.uint64)

    def overlaps(self, text: str) -> bool:
        """Whether any n-gram of `text` occurs in the documents."""
        grams = self._grams([self._numbers.get(word, 0) for word in words(text)])
        places = np.minimum(np.searchsorted(self._hashes, grams), max(0, len(self._hashes) - 1))
        return bool(len(self._hashes)) and bool((self._hashes[places] == grams).any())

    def check(self, texts: Sequence[str]) -> Overlap:
        """Look up every text."""
        testable = sum(len(words(text)) >= self.n for text in texts)
        return Overlap(len(texts), testable, tuple(self.overlaps(text) for text in texts))

    def _grams(self, numbers: list[int]) -> NDArray[np.uint64]:
        """Hashes of all runs of `n` word numbers: a polynomial modulo 2^64, mixed so that its low bits are good."""
        if len(numbers) < self.n:
            return np.empty(0, np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(np.array(numbers, np.uint64), self.n)
        hashes = np.zeros(len(windows), np.uint64)
        for column in windows.T:
            hashes = (hashes ^ column) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
        return hashes


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())
