"""Which source each row of a mixture comes from, and which of that source's own rows it is.

Every prefix of the stream holds each source's share to within one row (Tijdeman's chairman assignment, Discrete
Math. 32, 1980); every stage of a curriculum counts anew. Knows neither tokens nor where shares come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import heapify, heappop, heappush
from math import gcd

import numpy as np
from numpy.typing import NDArray

from lmworks.data.tokens.shares import WHOLE


@dataclass(frozen=True)
class MixedStage:
    """Constant shares from a row on."""

    first_row: int
    shares: tuple[int, ...]
    """Numerators over `WHOLE`, by source."""


@dataclass(frozen=True)
class MixingSchedule:
    """The source of every row, and which of the source's own rows it is."""

    names: tuple[str, ...]
    stages: tuple[MixedStage, ...]
    """By ascending first row, from 0."""

    def place(self, row: int) -> tuple[int, int]:
        """`(source, row of that source)` for a row of the mixture."""
        assert row >= 0, "rows are counted from 0"
        stage = self.stages[bisect_right(self._first_rows, row) - 1]
        source = _pattern(stage.shares).source(row - stage.first_row)
        return source, self._count(source, row)

    def counts(self, rows: int) -> tuple[int, ...]:
        """How many of the first `rows` rows each source has."""
        return tuple(self._count(source, rows) for source in range(len(self.names)))

    def asked(self, rows: int) -> tuple[float, ...]:
        """How many of the first `rows` rows the shares ask for, for each source."""
        total = np.zeros(len(self.names))
        for shares, length in self._lengths(rows):
            total += length * np.asarray(shares) / WHOLE
        return tuple(total.tolist())

    def _count(self, source: int, rows: int) -> int:
        return sum(_pattern(shares).count(source, length) for shares, length in self._lengths(rows))

    def _lengths(self, rows: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """The shares of each stage, and how many of the first `rows` rows are in it."""
        for stage, end in zip(self.stages, [*self._first_rows[1:], rows], strict=True):
            if (length := min(end, rows) - stage.first_row) > 0:
                yield stage.shares, length

    @cached_property
    def _first_rows(self) -> list[int]:
        return [stage.first_row for stage in self.stages]


class _Pattern:
    """The sources of a run of constant shares, which repeat after as many rows as the shares' common denominator."""

    def __init__(self, shares: tuple[int, ...]) -> None:
        common = gcd(*shares)
        self._numerators = [share // common for share in shares]
        self._order = _chairmen(self._numerators)
        by_source = np.argsort(self._order, kind="stable")
        self._places = np.split(by_source, np.cumsum(self._numerators)[:-1])

    def source(self, row: int) -> int:
        return int(self._order[row % len(self._order)])

    def count(self, source: int, rows: int) -> int:
        periods, rest = divmod(rows, len(self._order))
        return periods * self._numerators[source] + int(np.searchsorted(self._places[source], rest))


@lru_cache(maxsize=16)
def _pattern(shares: tuple[int, ...]) -> _Pattern:
    return _Pattern(shares)


def _chairmen(numerators: Sequence[int]) -> NDArray[np.int32]:
    """[period] sources, such that each prefix is within one row of every share n / period.

    A source's (c+1)-th row may come from row ⌊c·period / n⌋ on without exceeding its share by a whole row, and must
    come before row ⌈(c+1)·period / n⌉. Of the sources that may be next, the one that would be late first.
    """
    period = sum(numerators)
    order = np.empty(period, np.int32)
    counts = [0] * len(numerators)
    waiting = [(0, source) for source, n in enumerate(numerators) if n]
    heapify(waiting)
    ready: list[tuple[int, int]] = []
    for row in range(period):
        while waiting and waiting[0][0] <= row:
            _, source = heappop(waiting)
            heappush(ready, (-(-(counts[source] + 1) * period // numerators[source]), source))
        _, best = heappop(ready)
        order[row] = best
        counts[best] += 1
        heappush(waiting, (counts[best] * period // numerators[best], best))
    return order
