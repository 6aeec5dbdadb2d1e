"""Members of zip and tar archives, one after the other, never unpacked to disk and within bounds.

Knows nothing of what the members mean.
"""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import IO

from lmworks.core.errors import DataError
from lmworks.data.acquisition.archive import DAMAGE, BoundedReader, Readable
from lmworks.data.extraction.compression import NamedDamage
from lmworks.data.extraction.result import MAX_FILE_BYTES, UnreadableError

ARCHIVES = (".zip", ".tar")
MAX_GROWTH = 200
"""How many times its size an archive may hold; texts reach some twenty, bombs a thousand and more."""
MAX_DEPTH = 3
"""Archives inside of each other that are opened; more serve only to hide a bomb."""
_MAX_MEMBERS = 10_000_000
_IN_MEMORY = 1 << 26
_ENCRYPTED = 1
"""The bit of a zip member's flags that says that it asks for a password."""


class Budget:
    """Bytes that may still come out of one file of the user's, whatever archives and compressions lie in it.

    Args:
        size: of the file.
        name: for errors.
    """

    def __init__(self, size: int, name: str) -> None:
        self._limit = self._left = max(MAX_FILE_BYTES, MAX_GROWTH * size)
        self._name = name

    def counted(self, stream: Readable, name: str) -> io.BufferedReader:
        """The stream, of which at most one file's bytes can be read, and all of them count.

        Raises:
            DataError: while reading, where it is damaged or the budget is spent.
        """
        return io.BufferedReader(BoundedReader(_Counted(stream, self), MAX_FILE_BYTES, name))

    def take(self, size: int) -> None:
        """Count bytes that came out.

        Raises:
            DataError: they are too many.
        """
        self._left -= size
        if self._left < 0:
            raise DataError(
                f"{self._name} holds more than {self._limit:,} bytes when decompressed", "It is damaged or hostile"
            )


class _Counted:
    def __init__(self, stream: Readable, budget: Budget) -> None:
        self._stream, self._budget = stream, budget

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._budget.take(len(data))
        return data


def members(
    stream: IO[bytes], suffix: str, budget: Budget, name: str
) -> Iterator[tuple[str, IO[bytes] | UnreadableError]]:
    """`(name, stream)` of the regular files of an archive, or why one cannot be opened.

    Each stream is valid until the next member is asked for.

    Args:
        stream: of the archive, decompressed; a zip archive's can be sought in.
        suffix: one of `ARCHIVES`.
        budget: of the file that the archive came in.
        name: for errors.

    Raises:
        UnreadableError: `archive`, it is damaged.
        DataError: the budget is spent.
    """
    try:
        yield from _zip(stream, budget, name) if suffix == ".zip" else _tar(stream, budget, name)
    except (*DAMAGE, ValueError, IndexError, OverflowError, struct.error) as error:
        raise UnreadableError("archive", f"{type(error).__name__}: {error}") from None


@contextmanager
def seekable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """A copy of a member that can be sought in, on disk where it is large."""
    with SpooledTemporaryFile(_IN_MEMORY) as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.seek(0)
        yield copy


def _zip(stream: IO[bytes], budget: Budget, name: str) -> Iterator[tuple[str, IO[bytes] | UnreadableError]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist()[:_MAX_MEMBERS]:
            if info.filename.endswith("/"):  # `is_dir` fails on members without a name
                continue
            try:
                member = archive.open(info)
            except (*DAMAGE, RuntimeError, ValueError) as error:
                asks = bool(info.flag_bits & _ENCRYPTED)
                yield info.filename, UnreadableError("encrypted" if asks else "archive", str(error))
                continue
            with member:
                place = f"{name}!{info.filename}"
                yield info.filename, budget.counted(NamedDamage(member, place), place)


def _tar(stream: IO[bytes], budget: Budget, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    whole = io.BufferedReader(BoundedReader(_Counted(stream, budget), 1 << 62, name))
    with tarfile.open(fileobj=whole, mode="r|") as archive:
        for info in archive:
            member = archive.extractfile(info) if info.isreg() else None
            if member is not None:
                yield info.name, io.BufferedReader(BoundedReader(member, MAX_FILE_BYTES, f"{name}!{info.name}"))
