"""Which of several answers is good enough: graders by name, their verdicts kept with the row. Knows no method."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.data.synthesis.novelty import words
from lmworks.grading.text import contains, exact_match, f1

_AGAINST: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "contains": contains,
}
Judge = Callable[[Sequence[str]], Sequence[str | None]]
"""From requests to a generator's answers; None of one that failed."""


class GraderConfig(Config):
    """One grader; an answer must satisfy all of them."""

    name: Literal["exact_match", "f1", "contains", "words", "judge"]
    """The first three compare with a reference; `words` counts, each Han character as one; `judge` asks the generator
    for 1 to 5."""
    least: float
    """Grade from which on an answer is good: 0 to 1, a number of words, or the judge's 1 to 5."""
    field: Annotated[str, Field(min_length=1)] = "answer"
    """Of the input row, where the reference is: one text or a list of them."""


@dataclass(frozen=True)
class Candidate:
    """An answer to be graded."""

    instruction: str
    response: str
    extra: Mapping[str, Any]
    """Fields of the row that the instruction comes from."""


@dataclass(frozen=True)
class Verdict:
    """What one grader says of one answer."""

    grader: str
    grade: float | None
    """None where it could not be graded."""
    good: bool


def grade(candidates: Sequence[Candidate], graders: Sequence[GraderConfig], judge: Judge) -> list[tuple[Verdict, ...]]:
    """The verdicts of all graders on each answer; see `check_references`."""
    columns = []
    for grader in graders:
        if grader.name == "judge":
            grades = [_judged(text) for text in judge([_question(one) for one in candidates])]
        else:
            grades = [_graded(one, grader) for one in candidates]
        columns.append([Verdict(grader.name, value, value is not None and value >= grader.least) for value in grades])
    return list(zip(*columns, strict=True)) if columns else [() for _ in candidates]


def best(verdicts: Sequence[tuple[Verdict, ...]]) -> int | None:
    """The first of the answers with the highest sum of grades among those that all graders call good.

    Grades count from 0 to 1 each; a number of words is no merit, or the longest answer were the best.
    """
    good = [number for number, some in enumerate(verdicts) if all(verdict.good for verdict in some)]
    return max(good, key=lambda n: (sum(map(_merit, verdicts[n])), -n)) if good else None


def check_references(extra: Mapping[str, Any], graders: Sequence[GraderConfig]) -> None:
    """Look whether an input row has what graders compare with.

    Raises:
        DataError: it lacks it, or it is no text.
    """
    for grader in graders:
        references = _references(extra, grader)
        if grader.name in _AGAINST and not (references and all(isinstance(one, str) for one in references)):
            raise DataError(
                f"the grader {grader.name!r} finds no text in the field {grader.field!r} of an input row",
                "Give the field that holds the reference",
            )


def _references(extra: Mapping[str, Any], grader: GraderConfig) -> Sequence[Any]:
    found = extra.get(grader.field)
    return [found] if isinstance(found, str) else found if isinstance(found, list | tuple) else []


def _merit(verdict: Verdict) -> float:
    scale = {"words": 0.0, "judge": 1 / 5}.get(verdict.grader, 1.0)
    return (verdict.grade or 0.0) * scale


def _graded(one: Candidate, grader: GraderConfig) -> float:
    if grader.name == "words":
        return float(len(words(one.response)))
    return _AGAINST[grader.name](one.response, _references(one.extra, grader))


def _question(one: Candidate) -> str:
    return (
        f"Request:\n{one.instruction}\n\nAnswer:\n{one.response}\n\nHow good is the answer, from 1 (useless) to 5 "
        "(complete, correct, to the point)? Give the number and nothing else."
    )


def _judged(text: str | None) -> float | None:
    found = re.search(r"(?<![\d.])[1-5](?![\d.]*\d)", text or "")
    return float(found[0]) if found else None
