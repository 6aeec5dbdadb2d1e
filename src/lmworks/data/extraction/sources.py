"""Documents from what a user has: source artifacts, folders and files, each with its place and licence.

Whatever gives no text becomes a `Rejection` that names the file, and the line where there is one.
Knows no cleaning rule.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lmworks.core.errors import DataError, require
from lmworks.core.generation import Document
from lmworks.core.lineage import MANIFEST, verify
from lmworks.data.acquisition.archive import BoundedReader
from lmworks.data.extraction.extract import EXTRACTORS, UnreadableError
from lmworks.data.identity import row_id

MAX_FILE_BYTES = 1 << 30
"""Largest single document file, and the most a compressed one may grow to."""
MAX_ROW_BYTES = 1 << 26
ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
SUPPORTED = (*EXTRACTORS, *ROW_SUFFIXES)


@dataclass(frozen=True)
class Rejection:
    """Something that gave no document."""

    place: str
    """File, or `file:line`."""
    reason: str
    """Short name under which it is counted."""
    detail: str = ""


@dataclass(frozen=True)
class RowFields:
    """Where a row keeps its text, and what holds for files and rows that state no licence."""

    text: str = "text"
    license: str = "unspecified"


@dataclass(frozen=True)
class InputFile:
    """A file that may hold documents."""

    file: Path
    place: str
    """Its name in reports: relative to the input, so that it is the same on every machine."""


def input_files(path: Path) -> list[InputFile]:
    """The files of a source artifact, a folder (in the order of its paths), or the file itself.

    Raises:
        DataError: there is nothing at `path`, or nothing of a kind that can be read.
        ArtifactError: a source artifact's files do not match its manifest.
    """
    if (path / MANIFEST).exists():
        manifest = verify(path)
        file = path / "documents.jsonl"
        if manifest.kind != "source" or not file.is_file():
            held = ", ".join(sorted(manifest.files)) or "nothing"
            raise DataError(
                f"{path} is an artifact of kind {manifest.kind!r} and holds {held}", "Give a source of documents"
            )
        return [InputFile(file, path.name)]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and not _hidden(f.relative_to(path)))
        if not any(_suffix(f) in SUPPORTED for f in files):
            raise DataError(f"{path} holds {len(files)} files, none of them readable", f"Readable are {_supported()}")
        return [InputFile(file, f"{path.name}/{file.relative_to(path).as_posix()}") for file in files]
    if path.is_file():
        if _suffix(path) not in SUPPORTED:
            raise DataError(f"{path} has the suffix {path.suffix!r}", f"Readable are {_supported()}")
        return [InputFile(path, path.name)]
    raise DataError(f"{path} does not exist", "Give the path of a file, a folder or a fetched source")


def read_documents(path: Path, fields: RowFields) -> Iterator[Document | Rejection]:
    """Every document of a source artifact, a folder or a file.

    Raises:
        DataError: as `input_files`.
        ArtifactError: as `input_files`.
    """
    for found in input_files(path):
        yield from read_file(found, fields)


def _supported() -> str:
    return f"{', '.join(SUPPORTED)}, each also with .gz"


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _suffix(file: Path) -> str:
    """The suffix that tells the format, looking through `.gz`."""
    suffixes = [s.lower() for s in file.suffixes]
    return (suffixes[-2] if len(suffixes) > 1 else "") if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


@dataclass(frozen=True)
class Lines:
    """A part of a file of rows that begins and ends at line ends."""

    begin: int
    """Byte of its first line."""
    end: int
    first_line: int
    """Counted from 1."""


def parts(file: Path, size: int) -> list[Lines | None]:
    """Parts of about `size` bytes that can be read apart; `[None]`, the whole, where a format has none."""
    if _suffix(file) not in (".jsonl", ".ndjson") or file.suffix.lower() == ".gz" or file.stat().st_size <= size:
        return [None]
    made: list[Lines | None] = []
    with file.open("rb") as stream:
        begin, line = 0, 1
        while block := stream.read(size):
            block += stream.readline()
            made.append(Lines(begin, begin + len(block), line))
            begin, line = begin + len(block), line + block.count(b"\n")
    return made


def read_file(found: InputFile, fields: RowFields, part: Lines | None = None) -> Iterator[Document | Rejection]:
    """The documents of one file, or of a part of it."""
    file, place, suffix = found.file, found.place, _suffix(found.file)
    try:
        if suffix == ".parquet":
            yield from _parquet(file, place, fields)
        elif suffix in ROW_SUFFIXES:
            with _open(file, 0 if part is None else part.begin) as stream:
                yield from _json_lines(stream, place, fields, part)
        elif suffix in EXTRACTORS:
            with _open(file) as stream:
                text = EXTRACTORS[suffix](stream.read())
            yield _document({"text": text}, place, RowFields(license=fields.license))
        else:
            yield Rejection(place, "unsupported", f"suffix {file.suffix!r}")
    except UnreadableError as error:
        yield Rejection(place, error.reason, error.detail)
    except DataError as error:  # damaged, or grew beyond the bound
        yield Rejection(place, "unreadable", error.problem)
    except OSError as error:
        yield Rejection(place, "unreadable", str(error))


@contextmanager
def _open(file: Path, begin: int = 0) -> Iterator[IO[bytes]]:
    """A file's bytes from `begin` on, decompressed, up to a bound."""
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        if begin:
            stream.seek(begin)
        yield io.BufferedReader(BoundedReader(stream, MAX_FILE_BYTES, str(file)))


def _document(row: Mapping[str, Any], place: str, fields: RowFields) -> Document | Rejection:
    """Check one row and name what it lacks."""
    text = row.get(fields.text)
    if not isinstance(text, str):
        have = f"is a {type(text).__name__}" if fields.text in row else f"is not among {sorted(map(str, row))}"
        return Rejection(place, "no text field", f"{fields.text!r} {have}")
    if not text.strip():
        return Rejection(place, "empty")
    return Document(
        id=str(row.get("id") or row_id(text)),
        text=text,
        source=str(row.get("source") or place),
        license=str(row.get("license") or fields.license),
    )


def _json_lines(stream: IO[bytes], place: str, fields: RowFields, part: Lines | None) -> Iterator[Document | Rejection]:
    number, left = (0, None) if part is None else (part.first_line - 1, part.end - part.begin)
    while (left is None or left > 0) and (line := stream.readline(MAX_ROW_BYTES + 1)):
        number += 1
        left = None if left is None else left - len(line)
        here = f"{place}:{number}"
        if len(line) > MAX_ROW_BYTES:
            while rest := _to_line_end(line, stream):
                left, line = None if left is None else left - len(rest), rest
            yield Rejection(here, "too large", f"the line has more than {MAX_ROW_BYTES:,} bytes")
            continue
        if number == 1 and b"\0" in line:
            raise UnreadableError("binary", "the first line holds NUL bytes")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield Rejection(here, "encoding", f"invalid UTF-8 at byte {error.start} of the line")
        except (ValueError, RecursionError) as error:
            yield Rejection(here, "bad json", str(error))
        else:
            if isinstance(row, dict):
                yield _document(row, here, fields)
            else:
                yield Rejection(here, "bad json", f"the line holds a {type(row).__name__}, not an object")


def _to_line_end(line: bytes, stream: IO[bytes]) -> bytes:
    """The next bytes of a line that was not read to its end."""
    return b"" if line.endswith(b"\n") else stream.readline(MAX_ROW_BYTES)


def _parquet(file: Path, place: str, fields: RowFields) -> Iterator[Document | Rejection]:
    require("pyarrow", "data")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if fields.text not in names:
            yield Rejection(place, "no text field", f"{fields.text!r} is not among {names}")
            return
        wanted = [name for name in (fields.text, "id", "source", "license") if name in names]
        number = 0
        for batch in table.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield _document(row, f"{place}:{number}", fields)
    except pyarrow.ArrowException as error:
        raise UnreadableError("parquet", str(error)) from None
