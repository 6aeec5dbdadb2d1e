"""The text of electronic mail: single messages and mailboxes. Knows no other format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import IO

from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.html import read_html
from lmworks.data.extraction.result import Extracted, UnreadableError, known

MAX_MAIL_BYTES = 1 << 26
_MAX_PARTS = 1000
_FLOWED = re.compile(r"(?<!\n--) \n(?!>)")
"""The end of a line that goes on in the next one, where a message says `format=flowed` (RFC 3676)."""


def read_mail(data: bytes) -> Extracted:
    """Subject and body of a message; where a part comes as plain text and as HTML, its plain text.

    Raises:
        UnreadableError: `no text`, `mail` (parts without end).
    """
    try:
        message = message_from_bytes(data, policy=policy.default)
        text = "\n\n".join(_texts(message, [_MAX_PARTS]))
    except RecursionError:
        raise UnreadableError("mail", "its parts lie inside each other without end") from None
    subject = _header(message, "subject")
    if not text:
        raise UnreadableError("no text", "the message has no part that is text")
    return Extracted(f"{subject}\n\n{text}\n" if subject else f"{text}\n", known(
        title=subject, date=_header(message, "date"), author=_header(message, "from"),
        url=f"mid:{identity}" if (identity := _header(message, "message-id").strip("<> ")) else "",
    ))  # fmt: skip


def _texts(part: EmailMessage, left: list[int]) -> Iterator[str]:
    """The texts of a part and of those inside of it, without attachments; `left` counts the parts down."""
    left[0] -= 1
    if left[0] < 0 or part.get_content_disposition() == "attachment":
        return
    payload = part.get_payload()
    if not isinstance(payload, list):
        if text := _text(part):
            yield text
        return
    inner = [inside for inside in payload if isinstance(inside, EmailMessage)]
    if part.get_content_type() == "multipart/alternative":  # the same several times, the plainest first
        inner.sort(key=lambda alternative: alternative.get_content_type() != "text/plain")
        yield from next(filter(None, (list(_texts(alternative, left)) for alternative in inner)), [])
    else:
        for inside in inner:
            yield from _texts(inside, left)


def _text(part: EmailMessage) -> str:
    if part.get_content_maintype() != "text":
        return ""
    payload = part.get_payload(decode=True)
    charset = str(part.get_content_charset("") or "")
    if not isinstance(payload, bytes) or not payload.strip():
        return ""
    try:
        if part.get_content_subtype() == "html":
            return read_html(payload, charset).text.strip()
        text = decode_named(payload, charset)[0].replace("\r\n", "\n")
    except UnreadableError:
        return ""
    if part.get_param("format") == "flowed":
        text = _FLOWED.sub("" if part.get_param("delsp") == "yes" else " ", text)
    return text.strip()


def _header(message: EmailMessage, name: str) -> str:
    """A header; bytes that are not ASCII, though they should not be there, in the encoding that they seem to have."""
    try:
        raw = next((str(value) for key, value in message.raw_items() if key.lower() == name), "")
        if not raw.isascii():
            return " ".join(decode_named(raw.encode("ascii", "surrogateescape"))[0].split())
        return str(message.get(name, ""))
    except (UnreadableError, ValueError, IndexError, AttributeError, TypeError):  # the library's, on damaged ones
        return ""


def messages(stream: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """`(begin, end, message)` of a mailbox: bytes of the file, and the message without its `From ` line.

    A message beyond `MAX_MAIL_BYTES` is cut there.
    """
    begin = place = 0
    lines: list[bytes] = []
    size = 0
    started, after_empty = False, True
    while line := stream.readline(1 << 20):
        if after_empty and line.startswith(b"From "):
            if started:
                yield begin, place, b"".join(lines)
            begin, lines, size, started = place, [], 0, True
        elif started and size < MAX_MAIL_BYTES:
            lines.append(line[1:] if line.startswith((b">From ", b">>From ")) else line)
            size += len(line)
        after_empty = line in (b"\n", b"\r\n")
        place += len(line)
    if started:
        yield begin, place, b"".join(lines)
