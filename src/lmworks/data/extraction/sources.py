"""Documents from what a user has: source artifacts, folders and files of many formats, each with its place and licence.

Whatever gives no text becomes a `Rejection` that names the file, and the line, member or record where there is one.
Knows no cleaning rule.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO

from lmworks.core.errors import DataError
from lmworks.core.generation import Document
from lmworks.data.extraction.archives import ARCHIVES, MAX_DEPTH, Budget, members, seekable
from lmworks.data.extraction.code import (
    code_language,
    license_of,
    not_written_by_hand,
    not_written_here,
    stated_license,
)
from lmworks.data.extraction.compression import decompressed
from lmworks.data.extraction.containers import COLLECTION_READERS
from lmworks.data.extraction.extract import EXTRACTED, extract
from lmworks.data.extraction.files import InputFile, RemoteFile, format_of, input_files, opened
from lmworks.data.extraction.folders import readable_name
from lmworks.data.extraction.result import Extracted, Found, Rejection, RowFields, UnreadableError, within, writable
from lmworks.data.extraction.rows import Lines, json_lines, json_values, of_language, parquet, separated_values
from lmworks.data.identity import row_id

__all__ = ["InputFile", "Lines", "Rejection", "RowFields", "input_files", "parts", "read_documents", "read_file"]

_MAX_DOCUMENT_BYTES = 1 << 28
"""Largest file that is one document."""


def read_documents(path: Path | str, fields: RowFields) -> Iterator[Document | Rejection]:
    """Every document of a source artifact, a folder, a file or a URL.

    Raises:
        DataError: as `input_files`.
        ArtifactError: as `input_files`.
    """
    for found in input_files(path):
        yield from read_file(found, fields)


def parts(file: Path | RemoteFile, size: int) -> list[Lines | None]:
    """Parts of about `size` bytes that can be read apart; `[None]`, the whole, where a format has none."""
    if format_of(file) not in ((".jsonl", ""), (".ndjson", "")) or file.stat().st_size <= size:
        return [None]
    made: list[Lines | None] = []
    with opened(file) as stream:
        begin, line = 0, 1
        while block := stream.read(size):
            lines, length = block.count(b"\n"), len(block)
            while not block.endswith(b"\n") and (block := stream.readline(size)):
                lines, length = lines + block.count(b"\n"), length + len(block)
            made.append(Lines(begin, begin + length, line))
            begin, line = begin + length, line + lines
    return made


def read_file(found: InputFile, fields: RowFields, part: Lines | None = None) -> Iterator[Document | Rejection]:
    """The documents of one file, or of a part of it."""
    if found.refused:
        yield Rejection(found.place, found.refused, found.why)
        return
    nothing = True
    try:
        budget = Budget(found.file.stat().st_size, found.place)
        with opened(found.file) as stream:
            if part is not None:
                stream.seek(part.begin)
            for item in _contents(stream, PurePosixPath(found.place), found.file.name, fields, budget, part):
                nothing = False
                yield item if isinstance(item, Rejection) else _document(item, found, fields)
        if nothing and part is None:
            yield Rejection(found.place, "empty", "nothing in it is a document, a row or a member to read")
    except UnreadableError as error:
        yield Rejection(found.place, error.reason, error.detail)
    except DataError as error:  # damaged, or grew beyond the bound
        yield Rejection(found.place, "unreadable", error.problem)
    except OSError as error:
        yield Rejection(found.place, "unreadable", str(error))


def _contents(
    stream: IO[bytes], path: PurePosixPath, name: str, fields: RowFields, budget: Budget, part: Lines | None = None,
    *, depth: int = 0,
) -> Found:  # fmt: skip
    """What a file holds, or a member of `depth` archives inside of each other; places begin with `path`.

    Raises:
        UnreadableError: it gives no document at all.
        DataError: it is damaged or grew beyond its bound.
    """
    suffix, packed = format_of(PurePosixPath(name))
    place = str(path)
    if suffix in ARCHIVES:
        if depth >= MAX_DEPTH:
            raise UnreadableError("nested archive", f"more than {MAX_DEPTH} archives inside of each other")
        if suffix == ".zip" and packed:
            raise UnreadableError("unsupported", f"a zip archive with {packed} around it")
        with ExitStack() as open_ones:
            if suffix == ".tar":  # what comes out of it counts against the budget, so it needs no bound of its own
                plain: IO[bytes] = open_ones.enter_context(decompressed(stream, packed, place, 1 << 62))
            else:
                plain = open_ones.enter_context(seekable(stream)) if depth else stream
            for member, content in members(plain, suffix, budget, place):
                yield from _member(content, place, member, fields, budget, depth + 1)
        return
    with decompressed(stream, packed, place) as opened_stream:
        plain = budget.counted(opened_stream, place) if depth and packed else opened_stream
        if suffix in (".jsonl", ".ndjson"):
            yield from within(json_lines(plain, fields, part), place)
        elif suffix == ".json":
            yield from within(json_values(plain, fields), place)
        elif suffix in (".csv", ".tsv"):
            yield from within(separated_values(plain, fields, "," if suffix == ".csv" else "\t"), place)
        elif suffix == ".parquet":
            yield from within(parquet(stream if not packed and not depth else io.BytesIO(plain.read()), fields), place)
        elif suffix in COLLECTION_READERS:
            yield from within(COLLECTION_READERS[suffix](plain, fields), place)
        else:
            yield _whole(plain, path, name, suffix, fields)


def _member(
    content: IO[bytes] | UnreadableError, archive: str, member: str, fields: RowFields, budget: Budget, depth: int
) -> Found:
    """The documents of one member; what is wrong with it does not end the archive."""
    inside = PurePosixPath(readable_name(member.replace("\\", "/").replace("\0", "")))
    path = PurePosixPath(f"{archive}!{str(inside).lstrip('/')}")
    if not inside.name:
        yield Rejection(f"{archive}!", "unsupported", "a member without a name")
        return
    if any(part.startswith(".") and part != ".." for part in inside.parts):
        return  # hidden; what climbs out of its archive is read under its name, for nothing is unpacked to disk
    try:
        if isinstance(content, UnreadableError):
            raise content
        yield from _contents(content, path, inside.name, fields, budget, depth=depth)
    except UnreadableError as error:
        yield Rejection(str(path), error.reason, error.detail)
    except DataError as error:
        if "decompressed" in error.problem:  # a bomb; the members behind it are not worth the time
            raise
        yield Rejection(str(path), "unreadable", error.problem)


def _whole(stream: IO[bytes], path: PurePosixPath, name: str, suffix: str, fields: RowFields) -> Extracted | Rejection:
    """A file that is one document."""
    language = code_language(PurePosixPath(name).stem if format_of(PurePosixPath(name))[1] else name, suffix)
    if suffix not in EXTRACTED and not language:
        return Rejection(str(path), "unsupported", f"suffix {suffix!r}")
    if language and (why := not_written_here(path.parts[1:] or path.parts)):
        return Rejection(str(path), "vendored", why)
    data = stream.read(_MAX_DOCUMENT_BYTES + 1)
    if len(data) > _MAX_DOCUMENT_BYTES:
        raise UnreadableError("too large", f"the file has more than {_MAX_DOCUMENT_BYTES:,} bytes")
    extracted = extract(suffix, data, fields)
    if not extracted.text.strip():
        return Rejection(str(path), "empty")
    if language:
        if why := not_written_by_hand(extracted.text):
            return Rejection(str(path), "generated", why)
        if stated := stated_license(extracted.text):
            extracted.meta.setdefault("license", stated)
        extracted = of_language(extracted, language)
    return Extracted(extracted.text, {**extracted.meta, "sha256": hashlib.sha256(data).hexdigest()}, str(path))


def _document(item: Extracted, found: InputFile, fields: RowFields) -> Document | Rejection:
    try:
        item.text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Rejection(item.place, "lone surrogate", f"half a character at {error.start}, so the text was cut")
    meta = writable(item.meta)
    identity, source, stated = (str(meta.pop(name, "") or "") for name in ("id", "source", "license"))
    if not stated and isinstance(found.file, Path):
        stated = license_of(found.file, found.place.count("/"))
    return Document(
        id=identity or row_id(item.text), text=item.text, source=source or item.place,
        license=stated or fields.license, meta=meta,
    )  # fmt: skip
