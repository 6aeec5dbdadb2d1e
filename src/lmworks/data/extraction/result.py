"""What reading gives: a text and what its file tells of it, or the named reason why there is none. Knows no format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lmworks.core.errors import LMWorksError

MAX_FILE_BYTES = 1 << 30
"""Largest single document file, and the most a compressed one may grow to."""


_MAX_DEPTH = 50
"""Of facts inside each other."""


class UnreadableError(LMWorksError):
    """A file or row gives no text; `reason` is the short name it is counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[type[UnreadableError], tuple[str, str]]:
        return UnreadableError, (self.reason, self.detail)


@dataclass(frozen=True)
class Rejection:
    """Something that gave no document."""

    place: str
    """File, or `file:line`."""
    reason: str
    """Short name under which it is counted."""
    detail: str = ""


@dataclass(frozen=True)
class Extracted:
    """A text and what its file tells of it."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    """`title`, `url`, `date`, `license`…: what is known."""
    place: str = ""
    """Where in the file, such as `:3` for its third row; empty for all of it."""


@dataclass(frozen=True)
class RowFields:
    """Where a row keeps its text, what holds for files and rows that state no licence, and what reading may cost."""

    text: str = "text"
    license: str = "unspecified"
    ocr: bool = False
    """Recognize the text of scanned PDF pages (extra `ocr`); otherwise they are counted as `no text`."""
    seconds: int = 60
    """Most processor time for one HTML, PDF, office or mail file; a tenth more than ten times that by the clock.

    For a PDF file read with `ocr` sixty times as much.
    """


Found = Iterator[Extracted | Rejection]
"""What a file of several documents gives; the places of rejections are those in the file."""


def known(**facts: Any) -> dict[str, Any]:
    """The facts that are not empty, texts trimmed and shortened."""
    trimmed = {name: " ".join(fact.split())[:500] if isinstance(fact, str) else fact for name, fact in facts.items()}
    return {name: fact for name, fact in trimmed.items() if fact}


def writable(meta: dict[str, Any]) -> dict[str, Any]:
    """The same facts as JSON in UTF-8 can hold them: what a row's author put there may be anything."""
    return {_whole(name): _writable(fact, 0) for name, fact in meta.items()}


def _writable(fact: Any, depth: int) -> Any:
    if isinstance(fact, str):
        return _whole(fact)
    if fact is None or isinstance(fact, (bool, int)) or (isinstance(fact, float) and math.isfinite(fact)):
        return fact
    if depth < _MAX_DEPTH and isinstance(fact, dict):
        return {_whole(str(name)): _writable(inner, depth + 1) for name, inner in fact.items()}
    if depth < _MAX_DEPTH and isinstance(fact, (list, tuple)):
        return [_writable(inner, depth + 1) for inner in fact]
    return _whole(repr(fact)[:500]) if depth < _MAX_DEPTH else "…"


def _whole(text: str) -> str:
    """Without halves of characters."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def within(found: Found, place: str) -> Found:
    """What was found, with its place inside of something else put in front."""
    for item in found:
        yield replace(item, place=place + item.place)


Reader = Callable[[bytes], Extracted]
"""Reads a file that is one document."""
