"""How much of a text repeats itself: lines, paragraphs and n-grams of words (Gopher, Rae et al. 2021, table A1).

An n-gram can only repeat where the shorter one did, so each length looks only at what is left of the length before.
Knows no threshold and no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Level = tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]
_MIX = np.uint64(0x9E3779B97F4A7C15)


def repeated_parts(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts occurred before, and how many characters they have."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


class NGrams:
    """Repeated n-grams of a text's words.

    Args:
        hashes: a number for each word, [N].
        lengths: characters of each word, [N].
    """

    def __init__(self, hashes: NDArray[np.uint64], lengths: NDArray[np.int64]) -> None:
        self._count = len(hashes)
        self._hashes = hashes
        self._ends = np.concatenate([[0], np.cumsum(lengths)])
        self._levels: dict[int, _Level] = {}

    def top(self, n: int) -> int:
        """Occurrences × length, with spaces, of the most frequent n-gram; the first of several."""
        if self._count < n:
            return 0
        positions, _, groups, counts = self._level(n)
        most, first = 1, 0
        if len(positions):
            most = int(counts.max())
            first = int(positions[np.argmax(counts[groups] == most)])
        return most * int(self._ends[first + n] - self._ends[first] + n - 1)

    def repeats(self, n: int) -> bool:
        """Whether some n-gram occurs more than once."""
        return self._count >= n and len(self._level(n)[0]) > 0

    def repeated(self, n: int) -> int:
        """Characters of n-grams that occurred before, read from left to right without overlap."""
        positions, _, groups, _ = self._level(n)
        seen: set[int] = set()
        characters = free = 0
        for position, group in zip(positions.tolist(), groups.tolist(), strict=True):
            if position < free:
                continue
            if group in seen:
                characters += int(self._ends[position + n] - self._ends[position])
                free = position + n
            else:
                seen.add(group)
        return characters

    def _level(self, n: int) -> _Level:
        """Of the n-grams that occur more than once: positions, hashes, numbers of groups; and every group's count."""
        if n not in self._levels:
            if n == 1:
                positions, keys = np.arange(self._count), self._hashes
            else:
                positions, keys, _, _ = self._level(n - 1)
                inside = positions + n <= self._count
                positions, keys = positions[inside], keys[inside]
                keys = keys * _MIX + self._hashes[positions + n - 1]
                keys ^= keys >> np.uint64(29)
            groups, counts = _grouped(keys)
            again = counts[groups] > 1
            self._levels[n] = positions[again], keys[again], groups[again], counts
        return self._levels[n]


def _grouped(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each key's group of equals, and the size of each group."""
    order = np.argsort(keys)
    ordered = keys[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(keys)]
    groups = np.empty(len(keys), dtype=np.int64)
    groups[order] = np.cumsum(first) - 1
    return groups, np.bincount(groups)
