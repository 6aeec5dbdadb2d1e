"""From a file's bytes to its text: plain text, HTML and PDF, with a named reason where there is none.

Knows no folders, no rows and no cleaning.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from lmworks.core.errors import LMWorksError, require

_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_CONTROL = bytes(set(range(32)) - {9, 10, 12, 13, 27})
_MAX_CONTROL_SHARE = 0.01
_MAX_CHAOS = 0.1
"""charset-normalizer's measure of how messy a decoding looks; above it the guess is not trusted."""

_LET_THROUGH = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError, AssertionError
)  # fmt: skip
"""What pypdf does not catch on damaged files."""


class UnreadableError(LMWorksError):
    """A file or row gives no text; `reason` is the short name it is counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


def decode(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with its mark, or what charset-normalizer is sure of.

    Raises:
        UnreadableError: `binary`, `encoding` (damaged UTF-8, or an encoding that cannot be told).
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise UnreadableError("encoding", f"not {encoding} after its mark, at byte {error.start}") from None
    control = len(data) - len(data.translate(None, _CONTROL))
    if b"\0" in data or control > _MAX_CONTROL_SHARE * len(data):
        raise UnreadableError("binary", f"{control} control bytes in {len(data)}, so it is no text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _guess(data, error)


def _guess(data: bytes, error: UnicodeDecodeError) -> str:
    """Decode bytes that are not UTF-8, unless most of their non-ASCII part is: then they are damaged UTF-8."""
    place = f"invalid UTF-8 at byte {error.start}"
    lenient = data.decode("utf-8", errors="replace")
    broken = lenient.count("\ufffd")
    if len(re.findall(r"[^\x00-\x7f\ufffd]", lenient)) > broken:
        raise UnreadableError("encoding", f"{place}, though the rest is UTF-8: the file is damaged")
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        raise UnreadableError("encoding", f"{place}; install lmworks[data] to have encodings recognized") from None
    best = from_bytes(data).best()
    if best is None or best.chaos > _MAX_CHAOS:
        raise UnreadableError("encoding", f"{place}, and no other encoding fits")
    return str(best)


def html_text(data: bytes) -> str:
    """The main text of a page, without menus and footers; all of its text where no main part is found."""
    require("trafilatura", "data")
    require("lxml_html_clean", "data")  # imported by a dependency of trafilatura that some installers leave out
    import trafilatura

    page = decode(data)
    text = trafilatura.extract(page, include_comments=False) or trafilatura.html2txt(page)
    if not text:
        raise UnreadableError("no text", "the page holds none")
    return str(text)


def pdf_text(data: bytes) -> str:
    """The text of all pages, as far as the file holds text and not only pictures of it."""
    require("pypdf", "data")
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("pdf", "it is encrypted")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except (PyPdfError, DependencyError, *_LET_THROUGH) as error:
        raise UnreadableError("pdf", f"{type(error).__name__}: {error}") from None
    if not text.strip():
        raise UnreadableError("no text", "the pages hold pictures only; recognize their text first")
    return text


EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py"), decode),
    **dict.fromkeys((".html", ".htm", ".xhtml"), html_text),
    ".pdf": pdf_text,
}
"""Suffix to reader of files that are one document each."""
