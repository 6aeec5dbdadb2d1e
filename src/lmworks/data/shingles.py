"""Texts as flat arrays of word hashes, and the hashes of their n-grams, computed a few million at a time.

A word is a run of letters and digits, or one Han, kana or Hangul character, so that an n-gram is of words
where there are spaces and of characters where there are none. Knows nothing of duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.text_measures import CJK_RANGES
from lmworks.data.deduplication.native import folded, joined, letters, operations
from lmworks.data.shuffle import mix

MAX_N = 13
"""Longest n-gram that can be asked for, and how many zeros follow each text: the one n-gram of a text without words."""
_TOKEN = re.compile(f"[{CJK_RANGES}]|[^\\W{CJK_RANGES}]+")
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BYTES_AT_ONCE = 1 << 20


class Shingles:
    """Word hashes of many texts.

    Args:
        texts: compared without regard to case, punctuation and what cannot be seen; in one Unicode form.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        parts = [hash_words(some) for some in _batches(texts)]
        self.flat: NDArray[np.uint64] = np.concatenate([part for part, _ in parts]) if parts else np.empty(0, np.uint64)
        """Hashes of each text's words, followed by `MAX_N` zeros."""
        self.lengths: NDArray[np.int64] = (
            np.concatenate([lengths for _, lengths in parts]) if parts else np.empty(0, np.int64)
        )
        """[texts] words in each text."""
        self.starts: NDArray[np.int64] = np.cumsum(self.lengths + MAX_N) - (self.lengths + MAX_N)
        """[texts] where each begins in `flat`."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ngrams(self, n: int, begin: int = 0, end: int | None = None) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of the n-grams of texts `begin … end-1`, and how many belong to each.

        A text of fewer than `n` words has one n-gram, of all its words; a text without words has one, of none.
        """
        assert 1 <= n <= MAX_N, "the padding between texts bounds n"
        counts = np.maximum(self.lengths[begin:end] - n + 1, 1)
        starts = self.starts[begin:end]
        first = np.cumsum(counts) - counts
        places = np.arange(int(counts.sum())) - np.repeat(first, counts) + np.repeat(starts, counts)
        combined = np.zeros(len(places), np.uint64)
        for offset in range(n):
            combined = combined * np.uint64(_BASE) + self.flat[places + offset]
        return mix(combined), counts


def hash_words(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """`(hashes, lengths)` of the words of texts, natively where that can be had; see `Shingles.flat`."""
    native = operations()
    if native is None:
        return hash_words_reference(texts)
    text, ends = joined(texts)
    hashes = np.empty(len(text) + len(texts) * MAX_N, np.uint64)
    lengths = np.empty(len(texts), np.int64)
    written = native.lm_word_hashes(
        text, ends.ctypes.data, len(texts), MAX_N, *letters().addresses, hashes.ctypes.data, lengths.ctypes.data
    )
    return hashes[:written].copy(), lengths


def hash_words_reference(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """What `hash_words` computes, slowly."""
    words = [_TOKEN.findall(folded(text)) for text in texts]
    spelled = {word: _spelled(word) for word in {word for some in words for word in some}}
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    inside = np.repeat(np.tile([True, False], len(words)), np.stack([lengths, np.full_like(lengths, MAX_N)], 1).ravel())
    flat = np.zeros(len(inside), np.uint64)
    flat[inside] = mix(np.asarray([spelled[word] for some in words for word in some], np.uint64)) | np.uint64(1)
    return flat, lengths


def _spelled(word: str) -> int:
    """A number of the word's letters."""
    value = 0
    for letter in word:
        value = ((value ^ ord(letter)) * _BASE) & _MASK
    return value


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts of about `_BYTES_AT_ONCE` characters together."""
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= _BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
