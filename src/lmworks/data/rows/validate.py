"""Whether files of rows are fit to tune on: every fault with its line, every row counted. Changes no file.

Rules of single rows are in `rules`; here are those that look at several: the type and form of a file's rows, rows
that repeat or contradict each other, the balance of labels, lengths, prompts that two splits share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lmworks.core.errors import DataError, TokenizerError
from lmworks.data.identity import row_id
from lmworks.data.rows.convert import ChatRenderer, render
from lmworks.data.rows.files import Place, read_file
from lmworks.data.rows.rules import broken_rules
from lmworks.data.rows.turns import write_turns
from lmworks.data.rows.values import Content, LabeledRow, Row, RowFault, StepwiseRow

MOST_DESIRABLE = 4 / 3
"""KTO's weights keep desirable against undesirable answers between 1:1 and 4:3 (arXiv:2402.01306, section 4.2)."""


@dataclass(frozen=True)
class Finding:
    """One fault."""

    place: Place
    rule: str
    message: str
    serious: bool
    """Whether the rows should not be tuned on; else it is worth a look."""


@dataclass
class Validation:
    """What was found in some files."""

    rows: dict[Path, int] = field(default_factory=dict)
    """Rows of each file, bad ones included."""
    kinds: dict[Path, Counter[str]] = field(default_factory=dict)
    """Rows of each type in each file; those that cannot be read have none."""
    findings: list[Finding] = field(default_factory=list)
    """In the order of files and rows."""

    @property
    def errors(self) -> list[Finding]:
        """The serious findings."""
        return [finding for finding in self.findings if finding.serious]


class Measure(ChatRenderer, Protocol):
    """What is needed of a tokenizer to measure rows."""

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ...


def validate(files: Sequence[Path], tokenizer: Measure | None = None, max_tokens: int | None = None) -> Validation:
    """Look at every row of some files.

    Args:
        files: the splits of one data set; prompts that two of them share are a finding.
        tokenizer: counts tokens.
        max_tokens: most that a row's prompt with its longest answer may have.

    Raises:
        DataError: a file is unreadable as a whole, or a limit is given without a tokenizer.
    """
    if max_tokens is not None and tokenizer is None:
        raise DataError(f"a limit of {max_tokens} tokens is given without a tokenizer", "Give the tokenizer's folder")
    found = Validation()
    asked: dict[str, Place] = {}
    for file in files:
        group = _File()
        for item in read_file(file):
            found.rows[file] = found.rows.get(file, 0) + 1
            try:
                row = item.row()
            except RowFault as fault:
                found.findings.append(Finding(item.place, fault.rule, str(fault), True))
                continue
            faults = [
                *group.once(broken_rules(row)),
                *group.look(item.place, row),
                *_other_splits(item.place, row, asked),
            ]
            if max_tokens is not None and tokenizer is not None:
                faults += _too_long(row, tokenizer, max_tokens)
            found.findings += [Finding(item.place, fault.rule, str(fault), serious) for fault, serious in faults]
        found.kinds[file] = group.kinds
        found.findings += group.conclude(file)
        if not found.rows.setdefault(file, 0):
            found.findings.append(Finding(Place(file, 1), "no rows", "the file holds no rows", True))
    return found


class _File:
    """What is known of the rows of one file."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._first: Row | None = None
        self._seen: dict[str, Place] = {}
        self._labels: dict[str, tuple[bool, Place]] = {}
        self._balance: Counter[bool] = Counter()
        self._carried: set[str] = set()

    def once(self, faults: Iterator[tuple[RowFault, bool]]) -> Iterator[tuple[RowFault, bool]]:
        """The faults of a row, a field that is carried along named in the first row alone."""
        for fault, serious in faults:
            if fault.rule == "carried field":
                if str(fault) in self._carried:
                    continue
                self._carried.add(str(fault))
            yield fault, serious

    def look(self, place: Place, row: Row) -> Iterator[tuple[RowFault, bool]]:
        """Findings about a row beside those before it."""
        self.kinds[row.kind] += 1
        first = self._first = self._first or row
        if row.kind != first.kind:
            yield RowFault("mixed types", f"a {row.kind} row in a file that begins with {first.kind}"), True
        elif row.conversational != first.conversational:
            form = "messages" if row.conversational else "texts"
            yield RowFault("mixed forms", f"a row of {form} in a file that begins otherwise"), True
        elif ("prompt" in row.contents) != ("prompt" in first.contents):
            yield RowFault("mixed forms", "implicit and explicit prompts in one file"), False
        key = _key(row)
        if key in self._seen:
            yield RowFault("repeated row", f"says the same as line {self._seen[key].number}"), False
        self._seen.setdefault(key, place)
        if isinstance(row, LabeledRow):
            self._balance[row.label] += 1
            name = row_id(_text(row.prompt), _text(row.completion))
            label, where = self._labels.setdefault(name, (row.label, place))
            if label != row.label:
                yield RowFault("contradiction", f"the answer is {label} in line {where.number}, {row.label} here"), True

    def conclude(self, file: Path) -> Iterator[Finding]:
        """Findings about the file as a whole."""
        good, bad = self._balance[True], self._balance[False]
        if good + bad == 0 or (bad > 0 and 1 <= good / bad <= MOST_DESIRABLE):
            return
        if good == 0 or bad == 0:
            message, serious = (
                f"all {good + bad} answers are labeled {bool(good)}; there is nothing to tell apart",
                True,
            )
        else:
            weight, name = (bad / good, "desirable_weight") if good < bad else (good / bad, "undesirable_weight")
            message = f"{good} desirable and {bad} undesirable answers; {name} = {weight:.3g} would balance them"
            serious = False
        yield Finding(Place(file, 1), "unbalanced labels", message, serious)


def _other_splits(place: Place, row: Row, asked: dict[str, Place]) -> Iterator[tuple[RowFault, bool]]:
    if not (prompt := row.asked):
        return
    first = asked.setdefault(row_id(" ".join(_text(prompt).casefold().split())), place)
    if first.file != place.file:
        yield RowFault("shared prompt", f"asks the same as {first}"), True


def _too_long(row: Row, tokenizer: Measure, most: int) -> Iterator[tuple[RowFault, bool]]:
    if isinstance(row, StepwiseRow):
        parts = ["\n".join(map(_text, row.contents.values()))]
    else:
        try:
            contents = dict(render(row, tokenizer).contents)
        except TokenizerError as error:
            yield RowFault("chat template", str(error.problem)), True
            return
        prompt = str(contents.pop("prompt", ""))
        parts = [prompt + str(answer) for answer in contents.values()] or [prompt]
    longest = max(len(tokenizer.encode(part)) for part in parts)
    if longest > most:
        yield RowFault("too long", f"{longest} tokens, above {most}"), True


def _key(row: Row) -> str:
    """A name of what a row says, its further fields aside."""
    label = row.label if isinstance(row, LabeledRow) else row.labels if isinstance(row, StepwiseRow) else None
    said = [text for name, content in row.contents.items() for text in (name, _text(content))]
    return row_id(row.kind, *said, json.dumps([label, list(row.tools)], sort_keys=True, default=str))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else json.dumps(write_turns(content), sort_keys=True)
