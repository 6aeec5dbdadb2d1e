"""Records of WARC and WET archives, read front to back in bounded memory. Knows nothing of pages.

The format is ISO 28500: a block of headers, an empty line, as many bytes as `Content-Length` tells.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from lmworks.data.acquisition.archive import BoundedReader
from lmworks.data.extraction.result import UnreadableError

MAX_RECORD_BYTES = 1 << 25
"""Longer records are skipped; pages are two orders of magnitude smaller."""
_MAX_HEADER_LINES = 1000
_MAX_LINE = 1 << 16


@dataclass(frozen=True)
class Record:
    """One record; `begin` and `end` are bytes of the decompressed archive."""

    headers: dict[str, str]
    """Names in lower case."""
    content: bytes
    begin: int
    end: int
    cut: bool
    """It was larger than `MAX_RECORD_BYTES`, and its content is left out."""


def records(stream: IO[bytes]) -> Iterator[Record]:
    """The records of an archive.

    Raises:
        UnreadableError: `warc`, where a record does not begin as one or the archive ends inside of one.
    """
    place = 0
    while True:
        line = stream.readline(_MAX_LINE)
        place += len(line)
        if not line:
            return
        if not line.strip():
            continue
        if not line.startswith(b"WARC/"):
            raise UnreadableError("warc", f"no record begins at byte {place - len(line):,}")
        begin = place - len(line)
        headers, size = header_block(stream)
        place += size
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise UnreadableError("warc", f"the record at byte {begin:,} tells no length")
        left = int(length)
        cut = left > MAX_RECORD_BYTES
        parts = []
        while left:
            block = stream.read(min(left, 1 << 20))
            if not block:
                raise UnreadableError("warc", f"the record at byte {begin:,} is cut off")
            left -= len(block)
            place += len(block)
            if not cut:
                parts.append(block)
        yield Record(headers, b"".join(parts), begin, place, cut)


def header_block(stream: IO[bytes]) -> tuple[dict[str, str], int]:
    """Headers up to an empty line, and how many bytes they took."""
    headers: dict[str, str] = {}
    size = 0
    last = ""
    for _ in range(_MAX_HEADER_LINES):
        line = stream.readline(_MAX_LINE)
        size += len(line)
        if not line.strip():
            return headers, size
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text[0] in " \t" and last:
            headers[last] += " " + text.strip()
            continue
        name, _, value = text.partition(":")
        last = name.strip().lower()
        headers[last] = value.strip()
    raise UnreadableError("warc", f"a record has more than {_MAX_HEADER_LINES:,} headers")


def response_body(content: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an HTTP response, without its transfer and content encodings.

    Raises:
        UnreadableError: `warc`, where it is no response or its encoding is damaged.
    """
    stream = io.BytesIO(content)
    first = stream.readline(_MAX_LINE).split(None, 2)
    if len(first) < 2 or not first[0].startswith(b"HTTP/") or not first[1].isdigit():
        raise UnreadableError("warc", "the record holds no HTTP response")
    headers, _ = header_block(stream)
    body = stream.read()
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunked(body)
    return int(first[1][:3]), headers, _unpacked(body, headers.get("content-encoding", "").lower())


def _unchunked(body: bytes) -> bytes:
    """Chunks put together; the body itself where it is not chunked, as crawlers that undo it forget the header."""
    stream = io.BytesIO(body)
    parts: list[bytes] = []
    while line := stream.readline(_MAX_LINE):
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            return b"".join(parts) if parts else body
        if size <= 0:
            break
        parts.append(stream.read(size))
        stream.readline(_MAX_LINE)
    return b"".join(parts)


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in ("gzip", "x-gzip") and body[:2] == b"\x1f\x8b":
        return io.BufferedReader(
            BoundedReader(gzip.GzipFile(fileobj=io.BytesIO(body)), MAX_RECORD_BYTES, "a record")
        ).read()
    if encoding == "deflate":
        for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
            try:
                return zlib.decompressobj(window).decompress(body, MAX_RECORD_BYTES)
            except zlib.error:
                continue
    if encoding in ("br", "zstd"):
        raise UnreadableError("warc", f"the body is packed as {encoding!r}")
    return body
