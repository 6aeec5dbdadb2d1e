"""What a rule is: a measure, its bounds and where they were published; and what becomes of a text under rules.

Knows no particular rule, no file and no duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lmworks.data.cleaning.published_measures import PublishedMeasures

OWN = "ours"


@dataclass(frozen=True)
class Rule:
    """Keep a document whose `measure` lies within `[low, high]`."""

    name: str
    measure: Callable[[PublishedMeasures], float]
    low: float = float("-inf")
    high: float = float("inf")
    source: str = OWN
    spaced_only: bool = False
    """Does not apply to scripts without spaces between words."""

    def breaks(self, measures: PublishedMeasures) -> float | None:
        """The measured value when it lies out of bounds, else None."""
        if self.spaced_only and not measures.spaced:
            return None
        value = self.measure(measures)
        return None if self.low <= value <= self.high else value


@dataclass(frozen=True)
class LineRule:
    """Remove each line that matches; what is left goes on to the rules."""

    name: str
    pattern: re.Pattern[str]
    source: str


@dataclass(frozen=True)
class Kept:
    """A text that broke no rule, and the name of the rule for each line taken out of it."""

    text: str
    removed_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Broken:
    """The first rule that a text broke, and the value measured."""

    rule: Rule
    value: float


@runtime_checkable
class LineFilter(Protocol):
    """Takes lines out of a text, and may drop it; a pure function of the text."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that it drops whole texts by."""
        ...

    def __call__(self, text: str) -> Kept | Broken:
        """What becomes of a text."""
        ...


TextStep = Rule | LineFilter


def clean(text: str, steps: Sequence[TextStep]) -> Kept | Broken:
    """Apply steps in order: each looks at what the one before left of the text.

    Args:
        text: any text.
        steps: a preset's, or others.
    """
    measures = PublishedMeasures(text)
    removed: tuple[str, ...] = ()
    for step in steps:
        if isinstance(step, Rule):
            value = step.breaks(measures)
            if value is not None:
                return Broken(step, value)
            continue
        outcome = step(measures.text)
        if isinstance(outcome, Broken):
            return outcome
        removed += outcome.removed_lines
        if outcome.text != measures.text:
            measures = PublishedMeasures(outcome.text)
    return Kept(measures.text, removed)


def rules_in(steps: Sequence[TextStep]) -> tuple[Rule, ...]:
    """Every rule that the steps may drop a text by, in order."""
    return tuple(rule for step in steps for rule in ((step,) if isinstance(step, Rule) else step.rules))
