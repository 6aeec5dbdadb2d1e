"""Rows from disk: all of them, or an error that lists what is wrong by file and line. Knows no trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from lmworks.core.errors import DataError
from lmworks.data.rows.convert import explicit
from lmworks.data.rows.files import read_file
from lmworks.data.rows.rules import broken_rules
from lmworks.data.rows.values import LabeledRow, PreferenceRow, Row, RowFault

Read = TypeVar("Read")
SHOWN = 5


def load_rows(path: Path | str, renamed: Mapping[str, str] | None = None) -> list[Row]:
    """Every row of a file of any layout and type.

    Args:
        path: of the file.
        renamed: fields as the file calls them, and their names here, such as `{"question": "prompt"}`.

    Raises:
        DataError: the file is unreadable, holds no row, or rows are malformed; up to five are listed by their lines.
    """
    return load_as(Path(path), lambda row: row, "rows", renamed)


def load_preferences(path: Path | str) -> list[PreferenceRow]:
    """Rows of chosen and rejected answers with their prompts taken out, each fit to learn from.

    Args:
        path: JSONL, JSON, CSV or Parquet of any layout that has preferences.

    Raises:
        DataError: as `load_rows`; or a row is of another type, prefers an answer to itself, has an empty turn or
            turns out of order.
    """

    def preference(row: Row) -> PreferenceRow:
        if not isinstance(row, PreferenceRow):
            raise RowFault("other type", f"a {row.kind} row has no 'chosen' and 'rejected'")
        return explicit(_sound(row))

    return load_as(Path(path), preference, "preferences")


def load_labeled(path: Path | str) -> list[LabeledRow]:
    """Rows of answers that are labeled desirable or not, as KTO learns from; errors as in `load_preferences`."""

    def labeled(row: Row) -> LabeledRow:
        if not isinstance(row, LabeledRow):
            raise RowFault("other type", f"a {row.kind} row has no 'completion' with a 'label'")
        return _sound(row)

    return load_as(Path(path), labeled, "labeled answers")


def load_as(file: Path, read: Callable[[Row], Read], what: str, renamed: Mapping[str, str] | None = None) -> list[Read]:
    """What `read` makes of every row.

    Args:
        file: of rows.
        read: raises `RowFault` where it cannot.
        what: name of the rows, for messages.
        renamed: as in `load_rows`.

    Raises:
        DataError: as above.
    """
    made: list[Read] = []
    faults = []
    for found in read_file(file):
        try:
            made.append(read(found.row(renamed)))
        except RowFault as fault:
            faults.append(f"{found.place}: {fault}")
    if faults:
        more = f" (and {len(faults) - SHOWN} more)" if len(faults) > SHOWN else ""
        raise DataError(
            f"{len(faults)} bad {what}: {'; '.join(faults[:SHOWN])}{more}",
            "Fix or remove these rows; lmworks data validate lists all of them",
        )
    if not made:
        raise DataError(f"{file} holds no {what}", "Give a file with at least one row")
    return made


_Same = TypeVar("_Same", bound=Row)


def _sound(row: _Same) -> _Same:
    fault = next((fault for fault, serious in broken_rules(row) if serious), None)
    if fault is not None:
        raise fault
    return row
