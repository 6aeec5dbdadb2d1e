"""Files of rows, in and out: JSON lines, a JSON list, CSV, Parquet; every row with the place where it stands.

A number of a JSON file is the line a row begins on, of Parquet the row. Knows no layout beyond what is needed to
put lists into cells.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmworks.core.errors import DataError, disk_errors, require
from lmworks.data.extraction.compression import decompressed
from lmworks.data.rows.json_text import Decoder, blank
from lmworks.data.rows.layouts import Layout, parse_row, write_row
from lmworks.data.rows.values import Row, RowFault

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_COMPRESSED = (".gz", ".zst")
_LISTS = ("messages", "conversations", "completions", "labels", "history", "tools")
"""Cells of CSV that are JSON."""
_CONTENTS = ("prompt", "completion", "chosen", "rejected")
"""Cells of CSV that are JSON where they hold messages, else texts."""


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    file: Path
    number: int
    """Line where the file has lines, else row, counted from 1."""

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(frozen=True)
class Found:
    """One row of a file as it was read."""

    place: Place
    value: object
    fault: RowFault | None = None
    """Why there is no value."""

    def row(self, renamed: Mapping[str, str] | None = None) -> Row:
        """What the row says.

        Args:
            renamed: fields as the file calls them, and their names here.

        Raises:
            RowFault: saying what is wrong with it.
        """
        if self.fault is not None:
            raise self.fault
        if not renamed or not isinstance(self.value, Mapping):
            return parse_row(self.value)
        value = {renamed.get(str(name), str(name)): inner for name, inner in self.value.items()}
        if len(value) < len(self.value):
            raise RowFault("name twice", f"one of {sorted(renamed.values())} is there under both of its names")
        return parse_row(value)


def read_file(file: Path) -> Iterator[Found]:
    """Every row of a file, faults among them; JSON lines one at a time, other kinds as a whole.

    Args:
        file: `.jsonl`, `.json`, `.csv` or `.parquet`; the texts also with `.gz` or `.zst` behind.

    Raises:
        DataError: the file is missing, of another kind, not UTF-8 (of JSON lines, the line is a fault), damaged, or
            unreadable as a whole.
        MissingExtraError: a Parquet file needs pyarrow.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist", f"Give a file ending in {', '.join(SUFFIXES)}")
    kind, compression = _kind(file)
    if kind == ".parquet":
        return _parquet(file)
    if kind == ".jsonl":
        return _json_lines(file, compression)
    with file.open("rb") as stream, decompressed(stream, compression, str(file)) as plain:
        data = plain.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file} is UTF-16", "Convert it to UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line} is not UTF-8 (byte {error.start} of the file)", "Convert it to UTF-8") from None
    if kind == ".csv":
        return _csv(file, text)
    return _json_lines(file, compression) if _holds_lines(text) else _json_list(file, text)


def _kind(file: Path) -> tuple[str, str]:
    """How rows are written in a file, and how that is compressed."""
    *_, last = suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    compression = last if last in _COMPRESSED else ""
    kind = suffixes[-2] if compression and len(suffixes) > 1 else last
    if kind not in SUFFIXES or (compression and kind == ".parquet"):
        raise DataError(f"{file} is of no known kind", f"Give a file ending in {', '.join(SUFFIXES)}")
    return kind, compression


def write_file(file: Path, rows: Sequence[Row], layout: Layout = "trl") -> None:
    """Write rows whole or not at all, and only what reads back as the same rows.

    Args:
        file: its ending decides the kind.
        rows: of any types.
        layout: of each row.

    Raises:
        DataError: a row cannot be said in this layout or kind of file; the row is named by its number.
    """
    kind, compression = _kind(file)
    if compression not in ("", ".gz"):
        raise DataError(f"{file} would be compressed as {compression}", "Write it plain or as .gz")
    written = []
    for number, row in enumerate(rows, 1):
        try:
            written.append(write_row(row, layout))
        except RowFault as error:
            raise DataError(f"row {number}: {error}", "Choose the layout 'trl' or convert the rows first") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.tmp-{os.getpid()}{kind}")
    with disk_errors(file):
        try:
            _WRITERS[kind](staged, written)
            _check_same(staged, rows)
            if compression:  # without a name or time inside, so that equal rows give equal bytes
                staged.write_bytes(gzip.compress(staged.read_bytes(), mtime=0))
            staged.replace(file)
        except UnicodeEncodeError as error:
            raise DataError(f"a row holds half a character ({error.object[error.start]!r})", "Mend the text") from None
        finally:
            staged.unlink(missing_ok=True)


def _check_same(staged: Path, rows: Sequence[Row]) -> None:
    if staged.suffix in (".json", ".jsonl"):
        return  # JSON gives back what was written, which was compared row by row
    for number, (found, row) in enumerate(zip(read_file(staged), rows, strict=True), 1):
        try:
            same = found.row() == row
        except RowFault:
            same = False
        if not same:
            raise DataError(f"row {number} would not read back the same from {staged.suffix}", "Write .jsonl instead")


def _json_lines(file: Path, compression: str) -> Iterator[Found]:
    json_text = Decoder()
    with file.open("rb") as stream, decompressed(stream, compression, str(file)) as plain:
        for number, line in enumerate(plain, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{file} is UTF-16", "Convert it to UTF-8")
            if not line.strip():
                continue
            place = Place(file, number)
            try:
                yield Found(place, json_text.whole(line.decode("utf-8-sig" if number == 1 else "utf-8")))
            except UnicodeDecodeError as error:
                yield Found(place, None, RowFault("encoding", f"byte {error.start + 1} of the line is not UTF-8"))
            except RowFault as fault:
                yield Found(place, None, fault)


def _holds_lines(text: str) -> bool:
    """Whether a `.json` file is JSON lines, as many are: its first line is a whole row and another row follows."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.lstrip().startswith("{"):
        return False
    try:
        Decoder().whole(first)
    except RowFault:
        return False
    return True


def _json_list(file: Path, text: str) -> Iterator[Found]:
    json_text = Decoder()
    begin = blank(text, 0)
    if begin == len(text):
        return
    if text[begin] != "[":
        raise DataError(f"{file} is not JSON that holds a list of rows", "Wrap the rows in [ ]")
    begin, line, counted = blank(text, begin + 1), 1, 0
    while text[begin : begin + 1] != "]":
        line, counted = line + text.count("\n", counted, begin), begin
        try:
            value, end, fault = json_text.at(text, begin)
        except RowFault as endless:
            yield Found(Place(file, line), None, RowFault(endless.rule, f"{endless}; nothing behind it was read"))
            return
        yield Found(Place(file, line), None if fault else value, fault)
        end = blank(text, end)
        if text[end : end + 1] not in (",", "]"):
            raise DataError(f"{file} is not JSON: a comma or ] is missing in line {text.count(chr(10), 0, end) + 1}",
                            "Fix the file")  # fmt: skip
        begin = blank(text, end + 1) if text[end] == "," else end
    if text[begin + 1 :].strip():
        raise DataError(f"{file} is not JSON: text follows the list", "Fix the file")


def _csv(file: Path, text: str) -> Iterator[Found]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, begin = None, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file}:{begin} is not CSV: {error}", "Fix the file") from None
        if cells is None:
            return
        if header is None:
            header = cells
        elif cells:
            yield _row_of_cells(Place(file, begin), header, cells)
        begin = reader.line_num + 1


def _row_of_cells(place: Place, header: list[str], cells: list[str]) -> Found:
    if len(cells) != len(header):
        return Found(place, None, RowFault("malformed", f"{len(cells)} cells under {len(header)} names"))
    value: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if name in value:
            return Found(place, None, RowFault("malformed", f"the name {name!r} is given twice"))
        if name == "label" and cell.lower() in ("true", "false"):
            value[name] = cell.lower() == "true"
        elif cell and (name in _LISTS or (name in _CONTENTS and cell.startswith('[{"role"'))):
            try:
                value[name] = Decoder().whole(cell)
            except RowFault as fault:
                return Found(place, None, RowFault(fault.rule, f"the cell {name!r}: {fault}"))
        elif cell or name in ("text", *_CONTENTS):
            value[name] = cell
    return Found(place, value)


def _parquet(file: Path) -> Iterator[Found]:
    require("pyarrow", "data")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield Found(Place(file, number), value)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file that can be read: {error}", "Write it again") from None


def _write_json_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_json_list(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            cells = [row.get(name, "") for name in names]
            writer.writerow([cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells])


def _write_parquet(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    require("pyarrow", "data")
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [_cell(name, row.get(name)) for row in rows] for name in names}
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise DataError(f"the rows do not fit the columns of one table: {error}", "Write .jsonl instead") from None


def _cell(name: str, value: Any) -> Any:
    """Arguments and schemas go in as JSON: Arrow would give every object the fields of all the others."""
    if name == "tools" and isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return [_cell("", inner) for inner in value]
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        return {**value, "tool_calls": [_call(call) for call in value["tool_calls"]]}
    return value


def _call(call: Any) -> Any:
    inner = call.get("function") if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), dict):
        return call
    return {**call, "function": {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}}


_WRITERS: dict[str, Any] = {
    ".jsonl": _write_json_lines, ".json": _write_json_list, ".csv": _write_csv, ".parquet": _write_parquet,
}  # fmt: skip
