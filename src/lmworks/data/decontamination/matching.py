"""Finds items of evaluation sets in a text, word for word or edited.

Two ways, both on normalized words. *Exact*: a run of `ngram` words (13, appendix C of GPT-3, arXiv:2005.14165) of the
item stands in the text; an item that is shorter must stand there whole. *Edited*: within a window about as long as the
item, the text holds at least `overlap` of the item's distinct runs of three words, so that single words may be
replaced, added or left out. Runs that many items share, such as "how many are there", tell nothing and do not count.
Only the items are held in memory. Knows neither documents nor what is done about a match.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.text_measures import CJK
from lmworks.data.decontamination.evaluation_sets import EvaluationItem
from lmworks.data.decontamination.words import words
from lmworks.data.shuffle import mix

NGRAM = 13
MIN_WORDS = 8
"""An item of fewer words cannot be told from chance."""
SHORT = 3
"""Words of the runs by which edited items are found."""
SHORT_CJK = 4
"""Likewise of characters: fewer are met by chance, more break at every fourth edit."""
CJK_CHARACTERS = 1.7
"""Of a Chinese word, on average: exact runs of characters are so many times longer than those of words."""
MIN_SHORT = 12
"""Distinct telling short runs that an item must have to be found edited."""
MIN_FOUND = 8
"""Of which at least so many must be found: a third of a short item is a turn of phrase."""
SHARED = 10
"""Runs that more items than this share are no evidence."""
WINDOW = 1.5
"""Length of the window over that of the item: what was inserted stretches it."""
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Match:
    """An item found in a text."""

    item: EvaluationItem
    how: Literal["exact", "edited"]
    share: float
    """Of the item's distinct runs, those that stand in the window; 1 for exact matches."""
    spans: tuple[tuple[int, int], ...]
    """Characters of the text that matched, in order, not overlapping."""

    @property
    def longest(self) -> tuple[int, int]:
        """The longest span, the first where equal."""
        return max(self.spans, key=lambda span: span[1] - span[0])


class _Runs:
    """Hashes of runs and the items that each belongs to, for looking up many at once."""

    def __init__(self, runs: Iterable[tuple[int, NDArray[np.uint64]]], shared: int) -> None:
        pairs = [(np.unique(hashes), number) for number, hashes in runs]
        hashes = np.concatenate([h for h, _ in pairs]) if pairs else np.empty(0, np.uint64)
        owners = np.concatenate([np.full(len(h), number) for h, number in pairs]) if pairs else np.empty(0, np.int64)
        order = np.argsort(hashes, kind="stable")
        unique, counts = np.unique(hashes, return_counts=True)
        telling = np.repeat(counts <= shared, counts)
        self.hashes = unique[counts <= shared]
        self.owners = owners[order][telling].astype(np.int64)
        self.ends = np.cumsum(counts[counts <= shared])
        self.sizes = Counter(self.owners.tolist())
        """Telling runs of each item."""

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """`(places, runs, items)`: one row for each place in `hashes` and each item that its run belongs to."""
        if not len(self.hashes) or not len(hashes):
            return (np.empty(0, np.int64),) * 3
        runs = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        places = np.flatnonzero(self.hashes[runs] == hashes)
        runs = runs[places]
        begins = np.where(runs > 0, self.ends[runs - 1], 0)
        counts = self.ends[runs] - begins
        first = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) - np.repeat(first, counts) + np.repeat(begins, counts)
        return np.repeat(places, counts), np.repeat(runs, counts), self.owners[rows]


class EvaluationIndex:
    """Everything about some items that is needed to find them; made once, read by any number of processes.

    Args:
        items: what to look for.
        ngram: words of an exact match.
        overlap: least share of short runs of an edited match; None looks for exact matches alone.
    """

    def __init__(self, items: Sequence[EvaluationItem], ngram: int = NGRAM, overlap: float | None = 0.3) -> None:
        self.items = tuple(items)
        self.ngram, self.overlap = ngram, overlap
        self._numbers: dict[str, int] = {}
        exact: dict[int, list[tuple[int, NDArray[np.uint64]]]] = defaultdict(list)
        short: dict[int, list[tuple[int, NDArray[np.uint64]]]] = defaultdict(list)
        self.testable = np.zeros(len(self.items), bool)
        """[items] whether an item is long enough to be told from chance."""
        self._lengths = np.zeros(len(self.items), np.int64)
        for number, item in enumerate(self.items):
            texts = [[word for word, _, _ in words(text)] for text in item.texts]
            parts = [(part, _stretch(part)) for part in texts]
            parts = [(part, stretch) for part, stretch in parts if len(part) >= round(min(MIN_WORDS, ngram) * stretch)]
            self.testable[number] = bool(parts)
            self._lengths[number] = sum(len(part) for part, _ in parts)
            for part, stretch in parts:
                numbers = [self._number(word) for word in part]
                n = min(round(ngram * stretch), len(part))
                exact[n].append((number, _runs(numbers, n)))
                if overlap is not None:
                    n = SHORT if stretch == 1.0 else SHORT_CJK
                    short[n].append((number, _runs(numbers, n)))
        self._exact = {n: _Runs(_joined(pairs), SHARED) for n, pairs in sorted(exact.items())}
        self._short = {n: _Runs(_joined(pairs), SHARED) for n, pairs in sorted(short.items())}

    def _number(self, word: str) -> int:
        return self._numbers.setdefault(word, len(self._numbers) + 1)

    def find(self, text: str) -> list[Match]:
        """Every item that stands in the text, in the order of the items; an exact match before an edited one."""
        found = list(words(text))
        numbers = [self._numbers.get(word, 0) for word, _, _ in found]
        spans = [(start, end) for _, start, end in found]
        matches: dict[int, Match] = {}
        for n, runs in self._exact.items():
            if len(numbers) >= n:
                places, _, items = runs.find(_runs(numbers, n))
                for item in np.unique(items).tolist():
                    covered = _spans(places[items == item], n, spans)
                    before = matches[item].spans if item in matches else ()
                    matches[item] = Match(self.items[item], "exact", 1.0, _united((*before, *covered)))
        for n, runs in self._short.items():
            for item, share, places in self._edited(runs, n, _runs(numbers, n), set(matches)):
                matches[item] = Match(self.items[item], "edited", share, _spans(places, n, spans))
        return [matches[item] for item in sorted(matches)]

    def _edited(
        self, known: _Runs, n: int, hashes: NDArray[np.uint64], already: set[int]
    ) -> list[tuple[int, float, NDArray[np.int64]]]:
        """`(item, share, places)` of the best window of every item that reaches the overlap."""
        assert self.overlap is not None
        places, runs, items = known.find(hashes)
        hits = np.bincount(items, minlength=len(self.items)) if len(items) else np.zeros(len(self.items), np.int64)
        found = []
        for item in np.flatnonzero(hits).tolist():
            size = known.sizes[item]
            needed = max(int(np.ceil(self.overlap * size - 1e-9)), MIN_FOUND)
            if item in already or size < MIN_SHORT or hits[item] < needed:
                continue
            mine = items == item
            width = int(self._lengths[item] * WINDOW) + n
            most, begin, end = _densest(places[mine].tolist(), runs[mine].tolist(), width)
            if most >= needed:
                found.append((item, round(most / size, 4), places[mine][begin:end]))
        return found


def _stretch(part: Sequence[str]) -> float:
    """How much longer runs must be in a text: of Chinese, Japanese and Korean each character is a word here."""
    characters = sum(bool(CJK.match(word)) for word in part)
    return CJK_CHARACTERS if 2 * characters > len(part) else 1.0


def _runs(numbers: Sequence[int], n: int) -> NDArray[np.uint64]:
    """[max(words - n + 1, 0)] hashes of all runs of `n` word numbers."""
    sequence = np.asarray(numbers, np.uint64)
    count = max(len(numbers) - n + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for place in range(n):
        hashes = mix((hashes ^ sequence[place : place + count]) * _BASE)
    return hashes


def _joined(pairs: Iterable[tuple[int, NDArray[np.uint64]]]) -> list[tuple[int, NDArray[np.uint64]]]:
    """The runs of each item's parts together, so that an item counts once for a run."""
    by_item: dict[int, list[NDArray[np.uint64]]] = defaultdict(list)
    for number, hashes in pairs:
        by_item[number].append(hashes)
    return [(number, np.concatenate(parts)) for number, parts in by_item.items()]


def _densest(places: list[int], runs: list[int], width: int) -> tuple[int, int, int]:
    """`(distinct runs, begin, end)` of the slice of places within `width` words that holds most distinct runs."""
    best, at = 0, (0, 0)
    inside: Counter[int] = Counter()
    begin = 0
    for end, place in enumerate(places):
        inside[runs[end]] += 1
        while place - places[begin] > width:
            inside[runs[begin]] -= 1
            if not inside[runs[begin]]:
                del inside[runs[begin]]
            begin += 1
        if len(inside) > best:
            best, at = len(inside), (begin, end + 1)
    return best, *at


def _spans(places: NDArray[np.int64], n: int, spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Characters covered by runs of `n` words that begin at `places`."""
    return _united(tuple((spans[place][0], spans[place + n - 1][1]) for place in places.tolist()))


def _united(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same characters as spans that do not overlap; two that only a space or so parts become one."""
    united: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1] + 2:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return tuple(united)
