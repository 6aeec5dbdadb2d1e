"""Finds items of evaluation sets in a text, word for word or edited.

Two ways, both on normalized words. *Exact*: a run of `ngram` words (13, appendix C of GPT-3, arXiv:2005.14165) of the
item stands in the text; an item that is shorter must stand there whole. *Edited*: within a window about as long as the
item, the text holds at least `overlap` of the item's distinct runs of three words, so that single words may be
replaced, added or left out. Texts of an item that are too short to be told from chance are joined. Runs that many
texts share, such as "how many are there", tell nothing and do not count; a passage with several questions counts once.
Only the items are held in memory. Knows neither documents nor what is done about a match.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.normalize import normalize
from lmworks.data.cleaning.text_measures import CJK
from lmworks.data.decontamination.evaluation_sets import EvaluationItem
from lmworks.data.decontamination.words import normalized, spelled, words
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
"""Runs that more different texts than this share are no evidence."""
QUESTIONS = 100
"""A text that more items than this hold, or half of them, is an instruction and no passage that they ask about."""
WINDOW = 1.5
"""Length of the window over that of the item: what was inserted stretches it."""
Words = tuple[int, ...]
"""A text as numbers of its words."""
MOST_SPELLINGS = 1 << 18
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
    """Hashes of runs and the items that each belongs to, for looking up many at once.

    Args:
        n: words of a run.
        holders: texts as numbers of words, each with the items that hold it.
    """

    def __init__(self, n: int, holders: Mapping[Words, Sequence[int]]) -> None:
        texts, hashes = _runs_of(list(holders), n)
        order = np.lexsort((texts, hashes))
        texts, hashes = texts[order], hashes[order]
        different = np.ones(len(hashes), np.bool_)  # a run counts once for a text
        different[1:] = (hashes[1:] != hashes[:-1]) | (texts[1:] != texts[:-1])
        unique, runs, counts = np.unique(hashes[different], return_inverse=True, return_counts=True)
        telling = (counts <= SHARED)[runs]
        runs, texts = runs[telling], texts[different][telling]
        sizes = np.asarray([len(items) for items in holders.values()], np.int64)
        items = np.fromiter(chain.from_iterable(holders.values()), np.int64)
        owners = items[_ranges((np.cumsum(sizes) - sizes)[texts], sizes[texts])]
        most = int(items.max(initial=0)) + 1
        pairs = np.unique(np.repeat(runs, sizes[texts]) * most + owners)
        self.hashes = unique[counts <= SHARED]
        self.owners = pairs % most
        self.ends = np.cumsum(np.unique(pairs // most, return_counts=True)[1])
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
        return np.repeat(places, counts), np.repeat(runs, counts), self.owners[_ranges(begins, counts)]


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
        self.testable = np.zeros(len(self.items), bool)
        """[items] whether an item is long enough to be told from chance."""
        self._lengths = np.zeros(len(self.items), np.int64)
        holders: dict[Words, list[int]] = defaultdict(list)
        stretches: dict[Words, float] = {}
        for number, item in enumerate(self.items):
            for part in self._parts(item):
                self.testable[number] = True
                self._lengths[number] += len(part)
                text = tuple(map(self._number, part))
                holders[text].append(number)
                stretches[text] = _stretch(part)
        exact: dict[int, dict[Words, list[int]]] = defaultdict(dict)
        short: dict[int, dict[Words, list[int]]] = defaultdict(dict)
        most = min(max(len(self.items) // 2, SHARED), QUESTIONS)
        for text, numbers in holders.items():
            if len(numbers) <= most:
                exact[min(round(ngram * stretches[text]), len(text))][text] = numbers
                if overlap is not None:
                    short[SHORT if stretches[text] == 1.0 else SHORT_CJK][text] = numbers
        self._exact = {n: _Runs(n, texts) for n, texts in sorted(exact.items())}
        self._short = {n: _Runs(n, texts) for n, texts in sorted(short.items())}
        self._least = min((SHORT, *exact))
        self._least_runs = np.unique(_runs_of(list(holders), self._least)[1])
        self._spellings = _Spellings(self._numbers)

    def _parts(self, item: EvaluationItem) -> Iterator[list[str]]:
        """Texts as words that are enough to be told from chance; those that are not, together if they are then."""
        joined: list[str] = []
        for text in item.texts:
            part = [word for word, _, _ in words(normalize(text, keep_layout=True))]
            if self._enough(part):
                yield part
            else:
                joined += part
        if self._enough(joined):
            yield joined

    def _enough(self, part: Sequence[str]) -> bool:
        return len(part) >= round(min(MIN_WORDS, self.ngram) * _stretch(part))

    def _number(self, word: str) -> int:
        return self._numbers.setdefault(word, len(self._numbers) + 1)

    def find(self, text: str) -> list[Match]:
        """Every item that stands in the text, in the order of the items; an exact match before an edited one."""
        raw = spelled(text)
        numbers = np.fromiter(map(self._spellings.__getitem__, raw), np.uint64, len(raw))
        known = self._known(numbers)
        length = _longest(known)
        exact = [(n, *runs.find(_runs(numbers, n))) for n, runs in self._exact.items() if length > n - self._least]
        edited = []
        if np.count_nonzero(known) >= MIN_FOUND:
            edited = [(n, *found) for n, runs in self._short.items() for found in self._edited(n, runs, numbers)]
        if not edited and not any(len(places) for _, places, _, _ in exact):
            return []
        spans = [(start, end) for _, start, end in words(text)]
        matches: dict[int, Match] = {}
        for n, places, _, items in exact:
            for item in np.unique(items).tolist():
                covered = _spans(places[items == item], n, spans)
                before = matches[item].spans if item in matches else ()
                matches[item] = Match(self.items[item], "exact", 1.0, _united((*before, *covered)))
        for n, item, share, places in edited:
            if item not in matches or matches[item].how == "edited":
                matches[item] = Match(self.items[item], "edited", share, _spans(places, n, spans))
        return [matches[item] for item in sorted(matches)]

    def _known(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """[runs] which runs of `_least` words any item has: a longer run of an item is made of such."""
        hashes = _runs(numbers, self._least)
        if not len(self._least_runs):
            return np.zeros(len(hashes), np.bool_)
        places = np.minimum(np.searchsorted(self._least_runs, hashes), len(self._least_runs) - 1)
        return np.asarray(self._least_runs[places] == hashes)

    def _edited(
        self, n: int, known: _Runs, numbers: NDArray[np.uint64]
    ) -> Iterator[tuple[int, float, NDArray[np.int64]]]:
        """`(item, share, places)` of the best window of every item that reaches the overlap."""
        assert self.overlap is not None
        places, runs, items = known.find(_runs(numbers, n))
        for item in np.flatnonzero(np.bincount(items) >= MIN_FOUND).tolist():
            size = known.sizes[item]
            needed = max(int(np.ceil(self.overlap * size - 1e-9)), MIN_FOUND)
            mine = items == item
            if size < MIN_SHORT or np.count_nonzero(mine) < needed:
                continue
            width = int(self._lengths[item] * WINDOW) + n
            most, begin, end = _densest(places[mine].tolist(), runs[mine].tolist(), width)
            if most >= needed:
                yield item, round(most / size, 4), places[mine][begin:end]


class _Spellings(dict[str, int]):
    """Numbers of words as they are spelled in texts, 0 for those of no item; filled as they come, up to a bound.

    Args:
        numbers: of normalized words.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        super().__init__()
        self.numbers = numbers

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_SPELLINGS:
            self.clear()
        number = self[word] = self.numbers.get(normalized(word), 0)
        return number

    def __reduce__(self) -> tuple[type[_Spellings], tuple[Mapping[str, int]]]:
        return _Spellings, (self.numbers,)


def _longest(flags: NDArray[np.bool_]) -> int:
    """Length of the longest stretch of True."""
    ends = np.flatnonzero(~np.concatenate([[False], flags, [False]]))
    return int(np.diff(ends).max()) - 1


def _stretch(part: Sequence[str]) -> float:
    """How much longer runs must be in a text: of Chinese, Japanese and Korean each character is a word here."""
    characters = sum(bool(CJK.match(word)) for word in part)
    return CJK_CHARACTERS if 2 * characters > len(part) else 1.0


def _runs(sequence: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """[max(words - n + 1, 0)] hashes of all runs of `n` word numbers."""
    count = max(len(sequence) - n + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for place in range(n):
        hashes = mix((hashes ^ sequence[place : place + count]) * _BASE)
    return hashes


def _runs_of(texts: Sequence[Words], n: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """[runs] of all texts the number of the text, and the hash."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    hashes = _runs(np.fromiter(chain.from_iterable(texts), np.uint64, int(lengths.sum())), n)
    counts = np.maximum(lengths - n + 1, 0)
    return np.repeat(np.arange(len(texts)), counts), hashes[_ranges(np.cumsum(lengths) - lengths, counts)]


def _ranges(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of stretches one after another, each from its beginning on."""
    return np.arange(int(counts.sum())) + np.repeat(begins - (np.cumsum(counts) - counts), counts)


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
