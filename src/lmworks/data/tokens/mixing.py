"""Several token stores as one stream of rows, in shares that may change over the run.

Row `r` of the mixture is a pure function of the seed and `r`: which source it comes from, and which of that source's
own rows it is. So any rank or worker makes any row, and a run resumes from a row's number. Knows no model, no trainer
and no text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.schedule import MixedStage, MixingSchedule
from lmworks.data.tokens.shares import WHOLE, exact_shares, limited_shares, rounded_shares
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import join

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
    """Passes over it at most. With a temperature the other sources take what it cannot give; with weights or epochs a
    run that would pass over it more often is refused before it starts."""
    language: str | None = None
    """With a temperature: sources of one language count as one, and share by size what it gets."""


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
    """Shares in proportion to size^(1/temperature) of each language: 1 is by size, larger ones even languages out
    (arXiv:1907.05019). A source that names no language is one by itself."""
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
        if self.temperature is None and (named := [n for n, s in self.sources.items() if s.language is not None]):
            raise ValueError(f"the languages of {named} count for a temperature alone, and none is given")
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

    def schedule(self, rows_per_epoch: Mapping[str, float], total_rows: int) -> MixingSchedule:
        """Which source each row of a run comes from.

        Args:
            rows_per_epoch: rows that one pass over each source fills: its size.
            total_rows: of the run, by which the curriculum and limits are placed.

        Raises:
            ConfigError: with a temperature, all sources together may not be passed over often enough.
        """
        later = [(round(s.from_progress * total_rows), exact_shares(s.weights)) for s in self.curriculum]
        own_rows = later[0][0] if later else total_rows
        taken = MixingSchedule(tuple(self.sources), tuple(MixedStage(*stage) for stage in later))
        after = taken.asked(total_rows) if later else (0.0,) * len(self.sources)
        limits = {
            name: int(max(0.0, source.max_epochs * rows_per_epoch[name] - used)) * WHOLE // own_rows
            for (name, source), used in zip(self.sources.items(), after, strict=True)
            if source.max_epochs is not None and self.temperature is not None and own_rows
        }
        try:
            own = MixedStage(0, self._own_shares(rows_per_epoch, limits))
        except ValueError as error:
            raise ConfigError(f"{error}", "Train for fewer steps, raise max_epochs or add sources") from None
        return MixingSchedule(taken.names, (own, *taken.stages))

    def _own_shares(self, sizes: Mapping[str, float], limits: Mapping[str, int]) -> tuple[int, ...]:
        """Before the curriculum."""
        weights = {name: s.weight for name, s in self.sources.items() if s.weight is not None}
        if weights:
            return exact_shares(weights)
        if self.temperature is None:
            return rounded_shares({name: (s.epochs or 1.0) * sizes[name] for name, s in self.sources.items()})
        languages = {name: s.language or f" {name}" for name, s in self.sources.items()}
        of_language: dict[str, float] = defaultdict(float)
        for name, language in languages.items():
            of_language[language] += sizes[name]
        power = 1 / self.temperature - 1
        return limited_shares(
            {n: sizes[n] * of_language[language] ** power for n, language in languages.items()}, limits
        )


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
