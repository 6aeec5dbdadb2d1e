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


def read_documents(path: Path, fields: RowFields) -> Iterator[Document | Rejection]:
    """Every document of a source artifact, a folder (in the order of its paths) or a file.

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
        yield from _read_file(file, path.name, fields)
    elif path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and not _hidden(f.relative_to(path)))
        if not any(_suffix(f) in SUPPORTED for f in files):
            raise DataError(f"{path} holds {len(files)} files, none of them readable", f"Readable are {_supported()}")
        for file in files:
            yield from _read_file(file, f"{path.name}/{file.relative_to(path).as_posix()}", fields)
    elif path.is_file():
        if _suffix(path) not in SUPPORTED:
            raise DataError(f"{path} has the suffix {path.suffix!r}", f"Readable are {_supported()}")
        yield from _read_file(path, path.name, fields)
    else:
        raise DataError(f"{path} does not exist", "Give the path of a file, a folder or a fetched source")


def _supported() -> str:
    return f"{', '.join(SUPPORTED)}, each also with .gz"


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _suffix(file: Path) -> str:
    """The suffix that tells the format, looking through `.gz`."""
    suffixes = [s.lower() for s in file.suffixes]
    return (suffixes[-2] if len(suffixes) > 1 else "") if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _read_file(file: Path, place: str, fields: RowFields) -> Iterator[Document | Rejection]:
    suffix = _suffix(file)
    try:
        if suffix == ".parquet":
            yield from _parquet(file, place, fields)
        elif suffix in ROW_SUFFIXES:
            with _open(file) as stream:
                yield from _json_lines(stream, place, fields)
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
def _open(file: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed, up to a bound."""
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
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


def _json_lines(stream: IO[bytes], place: str, fields: RowFields) -> Iterator[Document | Rejection]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        here = f"{place}:{number}"
        if len(line) > MAX_ROW_BYTES:
            raise UnreadableError("too large", f"line {number} has more than {MAX_ROW_BYTES:,} bytes")
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
