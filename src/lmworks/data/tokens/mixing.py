"""Several token stores as one stream of rows, in shares that may change over the run.

Row `r` of the mixture is a pure function of the seed and `r`: which source it comes from, and which of that source's
own rows it is. So any rank or worker makes any row, and a run resumes from a row's number. Every prefix of the
stream holds each source's share to within one row (Tijdeman's chairman assignment, Discrete Math. 32, 1980); every
stage of a curriculum counts anew. Knows no model, no trainer and no text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from math import gcd, isfinite
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.data.tokens.packing import PackedRows
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import join

DECIMALS = 6
"""Of a share. Shares that are computed are rounded to so many; with them the pattern of sources repeats after at
most 10^6 rows, so that any row is found at once."""
WHOLE = 10**DECIMALS

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class SourceConfig(Config):
    """One source of a mixture."""

    tokens: Path
    """Tokens artifact with a `train` and a `validation` split."""
    weight: float | None = None
    """Share of all rows; the weights of all sources sum to 1. Not with `epochs` or a temperature."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over it in proportion to those of the others: 2 is seen twice as often as 1, relative to its size."""
    max_epochs: Annotated[float, Field(gt=0)] | None = None
    """A run that would pass over it more often than this is refused before it starts."""


class MixtureStage(Config):
    """Other weights from some point of the run on."""

    from_progress: Annotated[float, Field(gt=0, lt=1)]
    """Share of the run's tokens after which they hold."""
    weights: dict[Name, float]
    """Of every source; 0 leaves one out."""


class MixtureConfig(Config):
    """Sources and their shares: `weight` for each, or `epochs` for each, or one `temperature` for all."""

    sources: Annotated[dict[Name, SourceConfig], Field(min_length=1)]
    """By names that reports use."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Shares in proportion to size^(1/temperature): 1 is by size, larger ones even sources out (arXiv:1907.05019)."""
    curriculum: tuple[MixtureStage, ...] = ()
    """Weights over the run, by ascending `from_progress`; before the first, the sources' own hold."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        weighted = [name for name, s in self.sources.items() if s.weight is not None]
        by_epochs = [name for name, s in self.sources.items() if s.epochs is not None]
        ways = [bool(weighted), bool(by_epochs), self.temperature is not None]
        if sum(ways) != 1:
            raise ValueError(
                "give the sources either `weight`, or `epochs`, or the mixture a `temperature`, and one alone"
            )
        for name, given in (("weight", weighted), ("epochs", by_epochs)):
            if given and len(given) < len(self.sources):
                raise ValueError(f"{sorted(set(self.sources) - set(given))} lack a {name}, which other sources have")
        if weighted:
            exact_shares({name: s.weight for name, s in self.sources.items() if s.weight is not None})
        last = 0.0
        for stage in self.curriculum:
            if stage.from_progress <= last:
                raise ValueError(
                    f"from_progress {stage.from_progress} does not follow {last}; order the curriculum by it"
                )
            if odd := set(stage.weights) ^ set(self.sources):
                raise ValueError(
                    f"the curriculum's weights from {stage.from_progress} on and the sources differ in {sorted(odd)}; "
                    "name every source, with 0 for one that is left out"
                )
            exact_shares(stage.weights)
            last = stage.from_progress
        return self

    def schedule(self, sizes: Mapping[str, int], total_rows: int) -> MixingSchedule:
        """Which source each row of a run comes from.

        Args:
            sizes: tokens of each source.
            total_rows: of the run, by which the curriculum is placed.
        """
        stages = [MixedStage(0, self._own_shares(sizes))]
        for stage in self.curriculum:
            stages.append(MixedStage(round(stage.from_progress * total_rows), exact_shares(stage.weights)))
        return MixingSchedule(tuple(self.sources), tuple(stages))

    def _own_shares(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        weights = {name: s.weight for name, s in self.sources.items() if s.weight is not None}
        if weights:
            return exact_shares(weights)
        power = 1.0 if self.temperature is None else 1 / self.temperature
        amounts = {name: (s.epochs or 1.0) * float(sizes[name]) ** power for name, s in self.sources.items()}
        return rounded_shares(amounts)


def exact_shares(weights: Mapping[str, float]) -> tuple[int, ...]:
    """Weights as numerators over `WHOLE`.

    Raises:
        ValueError: one is negative or no number, has too many decimals, or they do not sum to 1.
    """
    fractions = []
    for name, weight in weights.items():
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"the weight {weight} of {name!r} is not a share: give 0 or more")
        fraction = Fraction(repr(float(weight))) * WHOLE
        if fraction.denominator != 1:
            raise ValueError(f"the weight {weight} of {name!r} has more than {DECIMALS} decimals; round it")
        fractions.append(fraction.numerator)
    if sum(fractions) != WHOLE:
        total = Fraction(sum(fractions), WHOLE)
        raise ValueError(f"the weights {dict(weights)} sum to {float(total):g} and not to 1; scale them")
    return tuple(fractions)


def rounded_shares(amounts: Mapping[str, float]) -> tuple[int, ...]:
    """Amounts as numerators over `WHOLE` that sum to it: the largest remainders are rounded up."""
    total = sum(amounts.values())
    exact = [amount / total * WHOLE for amount in amounts.values()]
    shares = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for index in order[: WHOLE - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


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
        stage = self._stage(row)
        pattern = _pattern(stage.shares)
        source = pattern.source(row - stage.first_row)
        return source, self.counts(row)[source]

    def counts(self, rows: int) -> tuple[int, ...]:
        """How many of the first `rows` rows each source has."""
        total = np.zeros(len(self.names), np.int64)
        for stage, end in zip(self.stages, [s.first_row for s in self.stages[1:]] + [rows], strict=True):
            if (length := min(end, rows) - stage.first_row) > 0:
                total += _pattern(stage.shares).counts(length)
        return tuple(int(count) for count in total)

    def asked(self, rows: int) -> tuple[float, ...]:
        """How many of the first `rows` rows the shares ask for, for each source."""
        total = np.zeros(len(self.names))
        for stage, end in zip(self.stages, [s.first_row for s in self.stages[1:]] + [rows], strict=True):
            total += max(0, min(end, rows) - stage.first_row) * np.asarray(stage.shares) / WHOLE
        return tuple(total.tolist())

    def _stage(self, row: int) -> MixedStage:
        assert row >= 0, "rows are counted from 0"
        return self.stages[bisect_right(self._first_rows, row) - 1]

    @cached_property
    def _first_rows(self) -> list[int]:
        return [stage.first_row for stage in self.stages]


class MixedRows:
    """Rows of several packed sources in the order of a schedule.

    Args:
        sources: rows of each source, in the schedule's order; all of one length.
        schedule: which comes when.
        max_epochs: passes over each source at most; None for no limit.
    """

    def __init__(
        self, sources: Sequence[PackedRows], schedule: MixingSchedule, max_epochs: Sequence[float | None] = ()
    ) -> None:
        assert len(sources) == len(schedule.names), "one source for each name"
        assert len({s.sequence_length for s in sources}) == 1, "all rows are of one length"
        self._sources, self.schedule = sources, schedule
        self._limits = tuple(max_epochs) or (None,) * len(sources)

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1` as one batch.

        Raises:
            DataError: one lies behind the last that its source may give.
        """
        assert count > 0, "a batch holds at least one row"
        return join([self._row(row) for row in range(start, start + count)])

    def documents(self, row: int) -> list[str]:
        """The source of a row and the number in it of each document, in their order."""
        source, own = self.schedule.place(row)
        return [f"{self.schedule.names[source]} {number}" for number in self._sources[source].documents(own)]

    def _row(self, row: int) -> Batch:
        source, own = self.schedule.place(row)
        limit = self._limits[source]
        if limit is not None and own + 1 > limit * self._sources[source].rows_per_epoch:
            raise self._ended(source, own + 1)
        return self._sources[source].rows(own, 1)

    def require(self, total_rows: int) -> None:
        """Refuse a run for which a source does not suffice.

        Raises:
            DataError: naming the source, what the run needs of it and what would help.
        """
        for source, count in enumerate(self.schedule.counts(total_rows)):
            limit = self._limits[source]
            if limit is not None and count > limit * self._sources[source].rows_per_epoch:
                raise self._ended(source, count)

    def report(self, total_rows: int) -> dict[str, dict[Literal["rows", "asked", "share", "epochs"], float]]:
        """What the first `total_rows` rows hold of each source, by its name."""
        counts, asked = self.schedule.counts(total_rows), self.schedule.asked(total_rows)
        return {
            name: {
                "rows": counts[i],
                "asked": asked[i],
                "share": counts[i] / max(1, total_rows),
                "epochs": counts[i] / self._sources[i].rows_per_epoch,
            }
            for i, name in enumerate(self.schedule.names)
        }

    def _ended(self, source: int, rows: int) -> DataError:
        have, limit = self._sources[source].rows_per_epoch, self._limits[source]
        assert limit is not None, "only limits are exceeded"
        return DataError(
            f"the source {self.schedule.names[source]!r} ends early: {rows} rows are {rows / have:.2f} passes over it, "
            f"and max_epochs is {limit:g}",
            "Lower its weight, train for fewer steps, raise max_epochs or give it more documents",
        )


class _Pattern:
    """The sources of a run of constant shares, which repeat after as many rows as the shares' common denominator."""

    def __init__(self, shares: tuple[int, ...]) -> None:
        common = gcd(*shares)
        self._numerators = np.array([share // common for share in shares], np.int64)
        self._order = _chairmen([share // common for share in shares])
        self._places = [np.flatnonzero(self._order == source) for source in range(len(shares))]

    def source(self, row: int) -> int:
        return int(self._order[row % len(self._order)])

    def counts(self, rows: int) -> NDArray[np.int64]:
        periods, rest = divmod(rows, len(self._order))
        return periods * self._numerators + np.array([np.searchsorted(places, rest) for places in self._places])


@lru_cache(maxsize=16)
def _pattern(shares: tuple[int, ...]) -> _Pattern:
    return _Pattern(shares)


def _chairmen(numerators: Sequence[int]) -> NDArray[np.int16]:
    """One period of sources, such that each prefix is within one row of every share.

    Of the sources that may be next without exceeding their share by a whole row, the one that would be late first.
    In integers, times the period P: after r rows of which c are a source's, n·(r+1) > c·P lets it be next, and
    its (c+1)-th row must come by row ⌈(c+1)·P / n⌉.
    """
    period = sum(numerators)
    order = np.empty(period, np.int16)
    active = [s for s, n in enumerate(numerators) if n]
    counts = [0] * len(numerators)
    for row in range(period):
        best, deadline = -1, 0
        for s in active:
            n = numerators[s]
            if n * (row + 1) > counts[s] * period:
                due = -(-(counts[s] + 1) * period // n)
                if best < 0 or due < deadline:
                    best, deadline = s, due
        order[row] = best
        counts[best] += 1
    return order
