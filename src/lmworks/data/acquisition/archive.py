"""Named members of wheels, zip files and tarballs, read one after the other and never unpacked to disk.

An archive is untrusted: a member's name cannot lead out of it, links and devices are skipped, and no more
bytes are decompressed than the caller allows. Knows nothing of what the members mean.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from lmworks.core.errors import DataError

MAX_BYTES = 1 << 30
"""Most bytes decompressed from one archive, unless the caller says otherwise."""


DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)
"""What the archive modules raise on damaged or unsupported input."""


class Readable(Protocol):
    """Anything bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class BoundedReader(io.RawIOBase):
    """A stream that raises `DataError` where it is damaged and once more than `limit` bytes came out of it."""

    def __init__(self, stream: Readable, limit: int, name: str) -> None:
        self._stream, self._left, self._limit, self._name = stream, limit, limit, name

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's private buffer type
        """Fill `buffer` as far as the stream and the limit go."""
        try:
            data = self._stream.read(len(buffer))
        except DAMAGE as error:
            raise damaged(self._name, error) from error
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._name} holds more than {self._limit:,} bytes when decompressed",
                "The file is damaged or hostile; get it again from its source",
            )
        buffer[: len(data)] = data
        return len(data)


def members(path: Path, pattern: str, max_bytes: int = MAX_BYTES) -> Iterator[tuple[str, IO[bytes]]]:
    """`(name, stream)` of every regular file in an archive whose name matches a shell pattern (`*` crosses `/`).

    Each stream is valid until the next member is asked for.

    Raises:
        DataError: the archive is damaged, names a file outside of itself, holds too much, or has no such member.
    """
    found = False
    try:
        for name, stream in _zip(path, max_bytes) if zipfile.is_zipfile(path) else _tar(path, max_bytes):
            if fnmatchcase(name, pattern):
                check_name(path, name)
                found = True
                yield name, stream
    except DAMAGE as error:
        raise damaged(str(path), error) from error
    if not found:
        raise DataError(f"{path} has no member {pattern!r}", "It is not the archive that was expected")


def _zip(path: Path, max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    left = max_bytes
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as stream:
                    bounded = BoundedReader(stream, left, f"{path}:{info.filename}")
                    yield info.filename, io.BufferedReader(bounded)
                    left = bounded._left


def _tar(path: Path, max_bytes: int) -> Iterator[tuple[str, IO[bytes]]]:
    """Reads front to back through one bounded stream, so that a bomb before the wanted member counts too."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain: Readable = gzip.GzipFile(fileobj=raw) if compressed else raw
        bounded = io.BufferedReader(BoundedReader(plain, max_bytes, str(path)))
        yield from tar_members(bounded, str(path))


def tar_members(stream: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """`(name, stream)` of every regular file of a tar archive that is read front to back; `name` is for errors."""
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            member = archive.extractfile(info) if info.isreg() else None
            if member is not None:
                yield info.name, io.BufferedReader(BoundedReader(member, info.size, f"{name}:{info.name}"))


def damaged(name: str, error: BaseException) -> DataError:
    """The error of an archive that cannot be read."""
    return DataError(f"{name} is damaged: {error}", "Get it again from its source")


def check_name(path: Path, name: str) -> None:
    """Refuse a member whose name leads out of its archive.

    Raises:
        DataError: it does.
    """
    parts = PurePosixPath(name).parts
    if not name or name.startswith(("/", "\\")) or "\\" in name or ".." in parts or ":" in parts[0]:
        raise DataError(f"{path} names the member {name!r}, which leads out of the archive", "Do not use this archive")
