"""Named members of Debian packages, read as every other archive is: bounded, in place, never unpacked or installed.

A package is an `ar` archive of three members, of which `data.tar` holds the files; see deb(5). Knows no index.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from lmworks.core.errors import DataError
from lmworks.data.acquisition.archive import DAMAGE, MAX_BYTES, check_name, damaged, tar_members
from lmworks.data.extraction.compression import COMPRESSIONS, decompressed

_MAGIC = b"!<arch>\n"
_HEADER = 60
"""Bytes of a member's header: name, three numbers and mode in columns, the size from byte 48, and a mark."""


def debian_members(path: Path, pattern: str, max_bytes: int = MAX_BYTES) -> Iterator[tuple[str, IO[bytes]]]:
    """`(name, stream)` of every regular file of a package whose name matches a shell pattern (`*` crosses `/`).

    Names begin without `./`. Each stream is valid until the next member is asked for.

    Raises:
        DataError: the package is damaged, names a file outside of itself, holds too much, or has no such member.
        MissingExtraError: it is compressed by zstd and the extra `data` is not installed.
    """
    found = False
    try:
        with path.open("rb") as raw:
            part, size = _data(raw, path)
            inside = io.BufferedReader(_Slice(raw, size))
            with decompressed(inside, part, str(path), max_bytes) as plain:
                for name, stream in tar_members(plain, str(path)):
                    bare = name.removeprefix("./")
                    if fnmatchcase(bare, pattern):
                        check_name(path, bare)
                        found = True
                        yield bare, stream
    except DAMAGE as error:
        raise damaged(str(path), error) from error
    if not found:
        raise DataError(f"{path} has no member {pattern!r}", "It is not the package that was expected")


def _data(raw: IO[bytes], path: Path) -> tuple[str, int]:
    """Go to the archive of files; its compression and size."""
    if raw.read(len(_MAGIC)) != _MAGIC:
        raise DataError(f"{path} is no Debian package", "Get it again from its source")
    while len(header := raw.read(_HEADER)) == _HEADER:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = header[48:58].strip()
        if header[58:] != b"`\n" or not size.isdigit():
            break
        if name.startswith("data.tar"):
            how = name.removeprefix("data.tar")
            if how and how not in COMPRESSIONS:
                raise DataError(f"{path} holds {name}, whose compression is not known here", "Repack it with xz")
            return how, int(size)
        raw.seek(int(size) + int(size) % 2, io.SEEK_CUR)  # members begin at even places
    raise damaged(str(path), EOFError("it has no data.tar"))


class _Slice(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, which is writable bytes, as far as the slice goes."""
        data = self._stream.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)
