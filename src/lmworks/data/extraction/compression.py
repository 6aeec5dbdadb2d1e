"""Streams of files, decompressed as their last suffix says and never past a bound. Knows no format of documents."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from lmworks.core.errors import DataError, require
from lmworks.data.acquisition.archive import BoundedReader
from lmworks.data.extraction.result import MAX_FILE_BYTES

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


def compression(suffixes: list[str]) -> str:
    """The compression that the last of a file's suffixes names, or nothing."""
    return suffixes[-1] if suffixes and suffixes[-1] in COMPRESSIONS else ""


@contextmanager
def decompressed(stream: IO[bytes], how: str, name: str, limit: int = MAX_FILE_BYTES) -> Iterator[io.BufferedReader]:
    """The bytes inside of a stream.

    Args:
        stream: opened for reading; stays open.
        how: one of `COMPRESSIONS`, or nothing.
        name: of the file, for errors.
        limit: most bytes that may come out.

    Raises:
        DataError: while reading, where the file is damaged or grows beyond `limit`.
    """
    opened: Any = stream
    if how == ".gz":
        opened = gzip.GzipFile(fileobj=stream)
    elif how == ".bz2":
        opened = bz2.BZ2File(stream)
    elif how == ".xz":
        opened = lzma.LZMAFile(stream)  # noqa: SIM115 - closed below
    elif how == ".zst":
        opened = _ZstandardReader(stream)
    try:
        yield io.BufferedReader(BoundedReader(NamedDamage(opened, name), limit, name), 1 << 16)
    finally:
        if opened is not stream:
            opened.close()


class _ZstandardReader(io.RawIOBase):
    """Frames one after the other; unlike the library's own stream reader it tells where one is cut off."""

    _STEP = 1024
    """Bytes decompressed at once: four of them may become 128 KiB."""

    def __init__(self, stream: IO[bytes]) -> None:
        require("zstandard", "data")
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._stream, self._frame, self._made = stream, self._decompressor.decompressobj(), b""
        self._inside = False
        """In the middle of a frame."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while not self._made:
            block = self._stream.read(self._STEP)
            if not block:
                if self._inside:
                    raise EOFError("the last frame is cut off")
                return b""
            made = []
            while block:
                made.append(self._frame.decompress(block))
                self._inside, block = not self._frame.eof, self._frame.unused_data if self._frame.eof else b""
                if not self._inside:
                    self._frame = self._decompressor.decompressobj()
            self._made = b"".join(made)
        taken, self._made = self._made[:size], self._made[size:]
        return taken


class NamedDamage:
    """Reads on, and tells what `BoundedReader` does not know as damage."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            DataError: what was packed with bz2, LZMA or Zstandard is damaged, or the disk is.
        """
        try:
            return bytes(self._stream.read(size))
        except (OSError, lzma.LZMAError) as error:  # of bz2 and the disk alike; `gzip.BadGzipFile` is one of them
            raise self._damaged(error) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "zstandard":  # which may not be installed
                raise self._damaged(error) from error
            raise

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self._name} is damaged: {error}", "Get it again from its source")
