"""Members of zip and tar archives, one after the other, never unpacked to disk and within bounds.

Knows nothing of what the members mean.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO

from lmworks.core.errors import DataError
from lmworks.data.acquisition.archive import DAMAGE, BoundedReader
from lmworks.data.extraction.result import MAX_FILE_BYTES, UnreadableError

ARCHIVES = (".zip", ".tar")
MAX_GROWTH = 200
"""How many times its size an archive may hold; texts reach some twenty, bombs a thousand and more."""
_MAX_MEMBERS = 10_000_000


def members(stream: IO[bytes], suffix: str, size: int, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """`(name, stream)` of the regular files of an archive; each stream is valid until the next member is asked for.

    Args:
        stream: of the archive, decompressed; a zip archive's can be sought in.
        suffix: one of `ARCHIVES`.
        size: bytes of the file that the archive came in, which bounds what may come out.
        name: for errors.

    Raises:
        UnreadableError: `archive`, it is damaged or asks for a password.
        DataError: it holds more than `MAX_GROWTH` times its size.
    """
    limit = max(MAX_FILE_BYTES, MAX_GROWTH * size)
    try:
        yield from _zip(stream, limit, name) if suffix == ".zip" else _tar(stream, limit, name)
    except (*DAMAGE, RuntimeError, ValueError) as error:  # RuntimeError: a password is asked for
        raise UnreadableError("archive", f"{type(error).__name__}: {error}") from None


def _zip(stream: IO[bytes], limit: int, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        left = limit
        for info in archive.infolist()[:_MAX_MEMBERS]:
            if info.is_dir():
                continue
            with archive.open(info) as member:
                bounded = BoundedReader(member, min(left, MAX_FILE_BYTES), f"{name}!{info.filename}")
                yield info.filename, io.BufferedReader(bounded)
                left -= member.tell()
            if left <= 0:
                raise DataError(f"{name} holds more than {limit:,} bytes when decompressed", "It is damaged or hostile")


def _tar(stream: IO[bytes], limit: int, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    bounded = io.BufferedReader(BoundedReader(stream, limit, name))
    with tarfile.open(fileobj=bounded, mode="r|") as archive:
        for info in archive:
            member = archive.extractfile(info) if info.isreg() else None
            if member is not None:
                yield info.name, io.BufferedReader(BoundedReader(member, MAX_FILE_BYTES, f"{name}!{info.name}"))
