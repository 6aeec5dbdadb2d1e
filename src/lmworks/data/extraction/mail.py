"""The text of electronic mail: single messages and mailboxes. Knows no other format."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import IO

from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.html import read_html
from lmworks.data.extraction.result import Extracted, UnreadableError, known

MAX_MAIL_BYTES = 1 << 26
_MAX_PARTS = 1000


def read_mail(data: bytes) -> Extracted:
    """Subject and body of a message; its plain text, or that of its HTML where there is no plain text.

    Raises:
        UnreadableError: `no text`, `binary`, `encoding`.
    """
    try:
        message = message_from_bytes(data, policy=policy.default)
        bodies = list(_bodies(message))
    except RecursionError:
        raise UnreadableError("mail", "its parts lie inside each other without end") from None
    plain = [text for kind, text in bodies if kind == "plain"] or [text for _, text in bodies]
    subject = _header(message, "subject")
    text = "\n\n".join(part.strip() for part in plain if part.strip())
    if not text:
        raise UnreadableError("no text", "the message has no part that is text")
    text = text.replace("\r\n", "\n")
    return Extracted(f"{subject}\n\n{text}\n" if subject else f"{text}\n", known(
        title=subject, date=_header(message, "date"), author=_header(message, "from"),
        url=f"mid:{identity}" if (identity := _header(message, "message-id").strip("<> ")) else "",
    ))  # fmt: skip


def _bodies(message: EmailMessage) -> Iterator[tuple[str, str]]:
    """`("plain" or "html", text)` of the parts that are text and no attachment."""
    for number, part in enumerate(message.walk()):
        if number > _MAX_PARTS:
            return
        if part.get_content_maintype() != "text" or part.get_content_disposition() == "attachment":
            continue
        kind = part.get_content_subtype()
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes) or not payload.strip():
            continue
        charset = str(part.get_content_charset("") or "")
        try:
            yield (
                ("html", read_html(payload, charset).text)
                if kind == "html"
                else ("plain", decode_named(payload, charset)[0])
            )
        except UnreadableError:
            continue


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message.get(name, ""))
    except (ValueError, IndexError, AttributeError, TypeError):  # of the standard library on damaged addresses
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
