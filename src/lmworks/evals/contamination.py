"""Has the training text seen the test? Counts test items that share 13 consecutive words with it.

The 13-gram rule of GPT-3's appendix C (arXiv:2005.14165) on words that are lower-cased runs of letters and digits.
Every training 13-gram is kept as a 64-bit hash in one sorted array: two million words take two seconds. Counts are
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
        numbers: list[int] = []
        ends: list[int] = []
        for document in documents:
            numbers += [self._numbers.setdefault(word, len(self._numbers) + 1) for word in words(document)]
            ends.append(len(numbers))
        hashes = self._hash(numbers)
        starts = np.arange(len(hashes))
        within_one = starts + n <= np.array(ends)[np.searchsorted(ends, starts, side="right")] if ends else starts < 0
        self._hashes = np.sort(hashes[within_one])

    def overlaps(self, text: str) -> bool:
        """Whether any n-gram of `text` occurs in the documents."""
        hashes = self._hash([self._numbers.get(word, 0) for word in words(text)])
        if len(self._hashes) == 0:
            return False
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return bool((self._hashes[places] == hashes).any())

    def check(self, texts: Sequence[str]) -> Overlap:
        """Look up every text."""
        testable = sum(len(words(text)) >= self.n for text in texts)
        return Overlap(len(texts), testable, tuple(self.overlaps(text) for text in texts))

    def _hash(self, numbers: list[int]) -> NDArray[np.uint64]:
        """Hashes of all runs of `n` word numbers: multiplied and folded modulo 2^64, word by word."""
        if len(numbers) < self.n:
            return np.empty(0, np.uint64)
        sequence = np.array(numbers, np.uint64)
        count = len(numbers) - self.n + 1
        hashes = np.zeros(count, np.uint64)
        for place in range(self.n):
            hashes = (hashes ^ sequence[place : place + count]) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
        return hashes


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())
