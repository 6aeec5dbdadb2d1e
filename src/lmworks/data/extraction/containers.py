"""Files that hold many pages or messages: web archives and mailboxes, record by record. Knows no row formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from lmworks.core.errors import DataError
from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.extract import extract
from lmworks.data.extraction.mail import messages
from lmworks.data.extraction.result import Extracted, Found, Rejection, RowFields, UnreadableError, known
from lmworks.data.extraction.warc import MAX_RECORD_BYTES, Record, records, response_body

_SUFFIX_OF = {"text/html": ".html", "application/xhtml+xml": ".html", "application/pdf": ".pdf", "text/plain": ".txt",
              "text/markdown": ".txt"}  # fmt: skip


def web_archive(stream: IO[bytes], fields: RowFields) -> Found:
    """Pages of responses and resources, and the plain text of conversions (WET)."""
    for record in records(stream):
        kind = record.headers.get("warc-type", "")
        if kind not in ("response", "resource", "conversion"):
            continue
        here = f"@{record.begin}"
        try:
            if record.cut:
                raise UnreadableError("too large", f"the record has more than {MAX_RECORD_BYTES:,} bytes")
            extracted = _record(record, kind, fields)
        except UnreadableError as error:
            yield Rejection(here, error.reason, error.detail)
        except DataError as error:
            yield Rejection(here, "unreadable", error.problem)
        else:
            told = known(url=record.headers.get("warc-target-uri", ""), date=record.headers.get("warc-date", ""))
            yield Extracted(extracted.text, {**extracted.meta, **told, "begin": record.begin, "end": record.end}, here)


def _record(record: Record, kind: str, fields: RowFields) -> Extracted:
    content, media = record.content, record.headers.get("content-type", "")
    if kind == "response":
        status, headers, content = response_body(content)
        if status != 200:
            raise UnreadableError("http status", str(status))
        media = headers.get("content-type", "")
    media, _, parameters = media.partition(";")
    declared = parameters.partition("charset=")[2].strip("\"' ;")
    suffix = _SUFFIX_OF.get(media.strip().lower())
    if suffix is None:
        if media.strip() or not content.lstrip()[:1] == b"<":
            raise UnreadableError("unsupported", f"media type {media.strip()!r}")
        suffix = ".html"
    if suffix == ".txt":
        text, encoding = decode_named(content, declared)
        if not text.strip():
            raise UnreadableError("empty")
        return Extracted(text, known(encoding="" if encoding == "utf-8" else encoding))
    return extract(suffix, content, fields, declared)


def mailbox(stream: IO[bytes], fields: RowFields) -> Found:
    """Messages of an mbox file."""
    for number, (begin, end, data) in enumerate(messages(stream), 1):
        try:
            extracted = extract(".eml", data, fields)
        except UnreadableError as error:
            yield Rejection(f":{number}", error.reason, error.detail)
        else:
            yield Extracted(extracted.text, {**extracted.meta, "begin": begin, "end": end}, f":{number}")


COLLECTION_READERS: dict[str, Callable[[IO[bytes], RowFields], Found]] = {
    ".warc": web_archive, ".wet": web_archive, ".mbox": mailbox,
}  # fmt: skip
