"""Files that hold many documents as rows: JSON lines, JSON arrays, CSV and Parquet, in bounded memory.

Every row that gives none is named by its line or number. Knows no cleaning rule.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

from lmworks.core.errors import require
from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.result import Extracted, Found, Rejection, RowFields, UnreadableError, known

MAX_ROW_BYTES = 1 << 26
_BLOCK = 1 << 16
_LINE_END = re.compile(r"\r\n|\n|\r(?!\Z)")
"""Not the other separators of Unicode, which belong to a text, nor what may be half of an end."""
_SAMPLE = 1 << 17
_CARRIED = ("id", "source", "license", "url", "title", "date", "timestamp", "author", "language")
"""Fields of a row that are kept besides its text."""


@dataclass(frozen=True)
class Lines:
    """A part of a file of rows that begins and ends at line ends."""

    begin: int
    """Byte of its first line."""
    end: int
    first_line: int
    """Counted from 1."""


def row(values: Mapping[str, Any], place: str, fields: RowFields, **where: int) -> Extracted | Rejection:
    """Check one row and name what it lacks."""
    text: Any = values.get(fields.text, values)
    if text is values:
        for name in fields.text.split("."):  # the field of a field
            text = text.get(name) if isinstance(text, Mapping) else None
    if isinstance(text, bytes):  # as some writers of Parquet store text
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Rejection(place, "encoding", f"invalid UTF-8 at byte {error.start} of the text")
    if not isinstance(text, str):
        have = "is not among" if text is None and fields.text not in values else f"is a {type(text).__name__} of"
        return Rejection(place, "no text field", f"{fields.text!r} {have} {sorted(map(str, values))}"[:500])
    if not text.strip():
        return Rejection(place, "empty")
    if len(text) > MAX_ROW_BYTES:
        return Rejection(place, "too large", f"the text has {len(text):,} characters")
    facts = {name: values[name] for name in _CARRIED if isinstance(values.get(name), (str, int, float))}
    inner = values.get("meta")
    told = {str(key): value for key, value in inner.items()} if isinstance(inner, Mapping) else {}
    named = {key: str(value) for key, value in facts.items() if str(value)}
    if "timestamp" in named:
        named.setdefault("date", named.pop("timestamp"))
    return Extracted(text, {**told, **named, **where}, place)


def json_lines(stream: IO[bytes], fields: RowFields, part: Lines | None) -> Found:
    """One object a line, noted with its bytes: of the file, or of what a compressed one holds.

    Args:
        stream: at the beginning of the part.
        fields: where a row keeps its text.
        part: None reads to the end.
    """
    number, place, end = (0, 0, None) if part is None else (part.first_line - 1, part.begin, part.end)
    while (end is None or place < end) and (line := stream.readline(MAX_ROW_BYTES + 1)):
        number += 1
        here, begin = f":{number}", place
        place += len(line)
        if len(line) > MAX_ROW_BYTES:
            while rest := b"" if line.endswith(b"\n") else stream.readline(_BLOCK):
                place, line = place + len(rest), rest
            yield Rejection(here, "too large", f"the line has more than {MAX_ROW_BYTES:,} bytes")
            continue
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UnreadableError("encoding", "it is UTF-16, and JSON lines are UTF-8")
        if number == 1 and b"\0" in line:
            raise UnreadableError("binary", "the first line holds NUL bytes")
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield Rejection(here, "encoding", f"invalid UTF-8 at byte {error.start} of the line")
        except (ValueError, RecursionError) as error:
            yield Rejection(here, "bad json", str(error))
        else:
            if isinstance(values, dict):
                yield row(values, here, fields, begin=begin, end=place)
            else:
                yield Rejection(here, "bad json", f"the line holds a {type(values).__name__}, not an object")


def json_values(stream: IO[bytes], fields: RowFields) -> Found:
    """The objects of an array, or of values one after the other; a damaged one ends the reading.

    Raises:
        UnreadableError: `encoding`, `bad json`, `too large` (one value).
    """
    for number, values in enumerate(_values(stream), 1):
        here = f":{number}"
        if isinstance(values, dict):
            yield row(values, here, fields)
        else:
            yield Rejection(here, "bad json", f"the value is a {type(values).__name__}, not an object")


def _values(stream: IO[bytes]) -> Iterator[Any]:
    decoder, scan = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder().raw_decode
    text, at, wanted = "", 0, _BLOCK
    array: bool | None = None
    ended = False
    while True:
        while not ended and len(text) - at < wanted:
            block = stream.read(_BLOCK)
            ended = not block
            try:
                text += decoder.decode(block, final=ended)
            except UnicodeDecodeError as error:
                raise UnreadableError("encoding", f"invalid UTF-8: {error.reason}") from None
        while at < len(text) and (text[at] in " \t\r\n" or (array and text[at] == ",")):
            at += 1
        if at >= len(text):
            if ended:
                return
            text, at = "", 0
            continue
        if array is None:
            array = text[at] == "["
            if array:
                at += 1
                continue
        if array and text[at] == "]":
            return
        try:
            value, after = scan(text, at)
        except (ValueError, RecursionError) as error:
            if ended or isinstance(error, RecursionError):
                raise UnreadableError("bad json", str(error)) from None
            text, at, wanted = text[at:], 0, 2 * max(wanted, len(text) - at)
            if wanted > 2 * MAX_ROW_BYTES:
                raise UnreadableError("too large", f"a value has more than {MAX_ROW_BYTES:,} characters") from None
            continue
        if not ended and after >= len(text) - 1:  # a number at the end of the block may go on
            wanted += _BLOCK
            continue
        yield value
        at, wanted = after, _BLOCK
        if at > 1 << 20:
            text, at = text[at:], 0


def separated_values(stream: IO[bytes], fields: RowFields, delimiter: str) -> Found:
    """CSV and TSV with a header line, in any encoding.

    Raises:
        UnreadableError: `binary`, `encoding`, `csv`.
    """
    sample = stream.read(_SAMPLE)
    cut = sample.rfind(b"\n") + 1 if len(sample) == _SAMPLE else len(sample)
    _, encoding = decode_named(sample[:cut] or sample)
    lines = _decoded_lines(sample, stream, encoding)
    csv.field_size_limit(MAX_ROW_BYTES)
    first = next(lines, "")
    if delimiter == "," and "," not in first:
        delimiter = next((d for d in (";", "\t", "|") if d in first), ",")
    reader = csv.reader(chain([first], lines), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UnreadableError("csv", f"the header: {error}") from None
    if fields.text not in names:
        yield Rejection("", "no text field", f"{fields.text!r} is not among {names}"[:500])
        return
    while True:
        here = f":{reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Rejection(here, "csv", str(error))
            continue
        except UnicodeDecodeError as error:
            raise UnreadableError("encoding", f"not {encoding} near line {here[1:]}: {error.reason}") from None
        if not values:
            continue
        if len(values) != len(names):
            yield Rejection(here, "csv", f"{len(values)} fields, and the header names {len(names)}")
        else:
            yield row(dict(zip(names, values, strict=True)), here, fields)


def _decoded_lines(sample: bytes, stream: IO[bytes], encoding: str) -> Iterator[str]:
    """Lines with their ends; ones without end come in pieces, which csv refuses at its own bound."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, block = "", sample
    while block:
        text = rest + decoder.decode(block)
        at = 0
        for end in _LINE_END.finditer(text):
            yield text[at : end.end()]
            at = end.end()
        rest = text[at:]
        if len(rest) > MAX_ROW_BYTES:
            raise UnreadableError("too large", f"a line has more than {MAX_ROW_BYTES:,} characters")
        block = stream.read(max(_BLOCK, len(rest)))
    if rest := rest + decoder.decode(b"", final=True):
        yield rest


def parquet(source: Any, fields: RowFields) -> Found:
    """The rows of a Parquet file.

    Raises:
        UnreadableError: `parquet`.
    """
    require("pyarrow", "data")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(source)
        names = table.schema_arrow.names
        wanted = fields.text if fields.text in names else fields.text.partition(".")[0]
        if wanted not in names:
            yield Rejection("", "no text field", f"{fields.text!r} is not among {names}"[:500])
            return
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=[n for n in (wanted, *_CARRIED) if n in names]):
            for values in _plain_rows(batch):
                number += 1
                yield (
                    row(values, f":{number}", fields)
                    if values
                    else Rejection(f":{number}", "encoding", "invalid UTF-8")
                )
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableError("parquet", str(error)[:500]) from None


def _plain_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """Rows one by one; None for one that holds no valid UTF-8. Dates become text."""
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for number in range(batch.num_rows):
        try:
            values = {name: column[number].as_py() for name, column in columns}
        except UnicodeDecodeError:
            yield None
        else:
            yield {name: str(value) if hasattr(value, "isoformat") else value for name, value in values.items()}


def of_language(extracted: Extracted, language: str) -> Extracted:
    """The same with its programming language noted, unless its file told one."""
    return Extracted(extracted.text, {**known(code_language=language), **extracted.meta}, extracted.place)
