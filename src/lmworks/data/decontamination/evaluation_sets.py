"""Reads the items of evaluation sets: rows of JSON, JSONL, CSV or Parquet files, or folders of them. Knows no matching.

Articles in SQuAD's layout are a row for each question, with its passage.
Only the fields that identify an item should be named: the question, the passage, the answer, not a shared instruction.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.core.errors import DataError, require

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
LONGEST_NAME = 40
"""Characters of a column's name; the first line of a table that has a longer one is a row itself."""


class EvaluationSetConfig(Config):
    """Where an evaluation set lies and which of its fields are looked for; a bare path takes every text field."""

    path: Path
    """A .jsonl, .json, .csv, .tsv or .parquet file (all but the last also .gz), or a folder of them."""
    fields: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Fields whose text identifies an item; none takes all fields that hold text. A dot goes into nested ones; columns
    of a table without names are "0", "1", …"""
    name: str | None = None
    """In reports; None takes the name of the file or folder."""
    where: dict[str, str | int | bool] = Field(default_factory=dict)
    """Values that a row's fields must have to count, such as `{split: test}`; none takes all rows."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, values: Any) -> Any:
        return {"path": values} if isinstance(values, (str, Path)) else values

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or self.path.name.partition(".")[0]


@dataclass(frozen=True)
class EvaluationItem:
    """One item: its name, unique within its set, and the texts that must not be trained on."""

    set: str
    name: str
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        """Unique over all sets."""
        return f"{self.set}/{self.name}"


def read_evaluation_set(config: EvaluationSetConfig) -> list[EvaluationItem]:
    """All items, named `file:number` or by their field `id` where every row of a file has one of its own.

    Raises:
        DataError: there is nothing to read, a row is damaged, or a named field is in no row.
        MissingExtraError: Parquet files need pyarrow.
    """
    files = _files(config.path)
    items: list[EvaluationItem] = []
    for file in files:
        rows = [question for row in _rows(file) for question in _questions(row)]
        ids = [row.get("id") for row in rows]
        named = len(set(map(str, ids))) == len(ids) and None not in ids
        prefix = f"{file.relative_to(config.path).as_posix()}:" if len(files) > 1 else ""
        for number, row in enumerate(rows, 1):
            texts = tuple(_chosen(row, config.fields))
            if texts and all(_value(row, field) == wanted for field, wanted in config.where.items()):
                items.append(EvaluationItem(config.title, f"{prefix}{row['id'] if named else number}", texts))
    if not items:
        asked = f"no row has text in the fields {', '.join(config.fields)}" if config.fields else "no row holds text"
        chosen = "".join(f" where {field} = {wanted!r}" for field, wanted in config.where.items())
        raise DataError(f"evaluation set {config.path}: {asked}{chosen}", "Name the fields that hold the items' text")
    return items


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(f for f in path.rglob("*") if f.is_file() and _kind(f) in SUFFIXES) if path.is_dir() else []
    if not found:
        raise DataError(
            f"evaluation set {path} is neither a file nor a folder with {', '.join(SUFFIXES)} files",
            "Give the file or folder of the evaluation set",
        )
    return found


def _kind(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    kind = _kind(file)
    try:
        if kind == ".parquet":
            require("pyarrow", "data")
            import pyarrow.parquet

            yield from _objects(file, pyarrow.parquet.read_table(file).to_pylist())
            return
        if kind not in SUFFIXES:
            raise DataError(f"evaluation set {file} is of no known format", f"Give {', '.join(SUFFIXES)}")
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = data.decode("utf-8-sig")
        if kind in (".csv", ".tsv"):
            csv.field_size_limit(1 << 26)
            yield from _table(csv.reader(io.StringIO(text), delimiter="\t" if kind == ".tsv" else ","))
        elif kind == ".json":
            yield from _objects(file, _list_in(_value_of(text)))
        else:
            yield from _objects(file, _values_of_lines(text))
    except (OSError, EOFError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueError and OSError
        raise DataError(f"evaluation set {file} cannot be read: {error}", "Repair or leave out the file") from None


def _objects(file: Path, rows: list[Any]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"{file}: item {number} is a {type(row).__name__}, not an object", "Give rows with fields")
        yield row


def _table(lines: Iterator[list[str]]) -> Iterator[Mapping[str, Any]]:
    """Rows by the names in the first line; by "0", "1", … where that one is a row itself, too long to be names."""
    first = next(lines, [])
    named = all(len(cell) <= LONGEST_NAME for cell in first)
    names = first if named else list(map(str, range(len(first))))
    for line in lines if named else chain([first], lines):
        yield dict(zip_longest(names, line[: len(names)], fillvalue="")) | {"more": line[len(names) :]}


def _questions(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Of an article or a passage of SQuAD's layout each question with its passage; any other row as it is."""
    for nested in ("paragraphs", "qas"):
        if isinstance(inner := row.get(nested), list) and all(isinstance(each, Mapping) for each in inner):
            around = {name: value for name, value in row.items() if name != nested}
            for each in inner:
                yield from _questions({**around, **each})
            return
    yield row


def _value_of(text: str) -> Any:
    """Of a JSON file; the list of its lines' values where it is JSON lines by another name."""
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return _values_of_lines(text)
        except ValueError:
            raise error from None


def _values_of_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _list_in(value: Any) -> list[Any]:
    """The rows of a JSON file: its list, or the one list among an object's values, such as `data`."""
    if isinstance(value, Mapping):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else [value]
    return value if isinstance(value, list) else [value]


def _chosen(row: Mapping[str, Any], fields: tuple[str, ...]) -> Iterator[str]:
    if not fields:
        yield from _texts(row)
    for name in fields:
        yield from _texts(_value(row, name))


def _value(row: Mapping[str, Any], name: str) -> Any:
    """Of a field; a dot goes into nested ones."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _texts(value: Any) -> Iterator[str]:
    """Every text within a value."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
