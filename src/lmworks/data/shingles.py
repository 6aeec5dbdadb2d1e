"""Texts as flat arrays of word hashes, and the hashes of their n-grams, computed a few million at a time.

A word is a run of letters and digits, or one Han, kana or Hangul character, so that an n-gram is of words
where there are spaces and of characters where there are none. Knows nothing of duplicates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.text_measures import CJK_RANGES
from lmworks.data.shuffle import mix

MAX_N = 13
"""Longest n-gram that can be asked for."""
_TOKEN = re.compile(f"[{CJK_RANGES}]|[^\\W{CJK_RANGES}]+")
_BASE = 0x9E3779B97F4A7C15


class _WordHashes(dict[str, int]):
    """Hash of each word, computed when it is first met; the same in every process."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little") | 1
        return value


class Shingles:
    """Word hashes of many texts.

    Args:
        texts: compared without regard to case and punctuation.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        hashes = _WordHashes()
        parts: list[NDArray[np.uint64]] = []
        lengths = []
        padding = np.zeros(MAX_N - 1, np.uint64)
        for text in texts:
            words = _TOKEN.findall(text.casefold())
            parts += (np.fromiter((hashes[word] for word in words), np.uint64, len(words)), padding)
            lengths.append(len(words))
        self.lengths = np.asarray(lengths, dtype=np.int64)
        """[texts] words in each text."""
        self._flat = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths + MAX_N - 1)])[: len(self.lengths)].astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def ngrams(self, n: int, begin: int = 0, end: int | None = None) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of the n-grams of texts `begin … end-1`, and how many belong to each.

        A text of fewer than `n` words has one n-gram, of all its words; a text without words has one, of none.
        """
        assert 1 <= n <= MAX_N, "the padding between texts bounds n"
        counts = np.maximum(self.lengths[begin:end] - n + 1, 1)
        starts = self._starts[begin:end]
        first = np.cumsum(counts) - counts
        places = np.arange(int(counts.sum())) - np.repeat(first, counts) + np.repeat(starts, counts)
        combined = np.zeros(len(places), np.uint64)
        for offset in range(n):
            combined = combined * np.uint64(_BASE) + self._flat[places + offset]
        return mix(combined), counts
