"""From the lines of PDF pages, with their places, to running text: columns, paragraphs, hyphens, headers and footers.

Knows no file format: whatever tells lines and boxes, text layer or recognized characters, can use it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

_LIGATURES = str.maketrans({
    "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st",
    "\u00ad": "", "\ufffe": "-", "\x02": "-",
})  # fmt: skip
"""One character for several letters, and the hyphens at line ends that PDFium marks."""
_CJK = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f"
_ENDS_CJK, _BEGINS_CJK = re.compile(f"[{_CJK}]$"), re.compile(f"^[{_CJK}]")
_BROKEN_WORD = re.compile(r"([^\W\d_]{2,})[-‐]$")
_WORD_BEGINNING = re.compile(r"[^\W\d_]+")
_PAGE_NUMBER = re.compile(r"^\W*(?:page\s*)?(?:\d{1,4}|[ivxlcdm]{1,7})(?:\s*(?:of|/)\s*\d{1,4})?\W*$", re.IGNORECASE)
_MARGIN_LINES = 2
"""Lines at either end of a page that may be a header or footer."""
_MIN_PAGES = 4
"""Fewer pages repeat nothing that can be told from text."""
_MIN_REPEATED = 0.3
"""Share of its neighborhood's pages on which a margin line has to return."""
_NEIGHBORHOOD = 10


@dataclass(frozen=True)
class Line:
    """A line of a page; the origin is the lower left corner, as in the PDF."""

    text: str
    left: float
    bottom: float
    right: float
    top: float

    @property
    def height(self) -> float:
        """Of its characters."""
        return self.top - self.bottom


def running_text(pages: Sequence[Sequence[Line]]) -> str:
    """The text of pages: paragraphs on one line each, an empty line between pages' blocks, margins left out."""
    ordered = [in_reading_order([replace(line, text=line.text.translate(_LIGATURES)) for line in p]) for p in pages]
    vocabulary = Counter(
        word for page in ordered for line in page for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line.text)
    )
    return "\n\n".join(text for page in without_margins(ordered) if (text := _paragraphs(page, vocabulary)))


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """Columns one after the other; the order of the file where it already is, or where there are no columns."""
    gutter = _gutter(lines)
    if gutter is None:
        return list(lines)
    made: list[Line] = []
    band: tuple[list[Line], list[Line]] = ([], [])
    for line in sorted(lines, key=lambda line: (-round(line.top), line.left)):
        if line.left < gutter < line.right:  # across both columns: what stands above it is read before it
            made += [*band[0], *band[1], line]
            band = ([], [])
        else:
            band[line.left >= gutter].append(line)
    return [*made, *band[0], *band[1]]


def _gutter(lines: Sequence[Line]) -> float | None:
    """The x between two columns whose lines the file gives in turns; None where it does not."""
    turns = [
        (a.right, b.left)
        for a, b in pairwise(lines)
        if abs(a.bottom - b.bottom) < 0.5 * max(a.height, b.height) and b.left > a.right
    ]
    if len(turns) < 5:
        return None
    left, right = median(end for end, _ in turns), median(begin for _, begin in turns)
    where = (max(end for end, begin in turns if begin >= right - 1) + right) / 2 if left < right else right
    beside = [line for line in lines if line.right <= where or line.left >= where]
    wide = [line for line in beside if len(line.text) > 20]
    # Cells of a table also stand side by side, but they are short, and more than two stand in a row.
    return where if len(wide) > 0.6 * len(beside) and len(beside) > 0.6 * len(lines) else None


def without_margins(pages: Sequence[list[Line]]) -> list[list[Line]]:
    """Pages without the lines at their ends that return on other pages, and without page numbers."""
    if len(pages) < _MIN_PAGES:
        return list(pages)
    edges = [[(end, _shape(line.text)) for end, _, line in _edges(page)] for page in pages]
    kept = []
    for number, page in enumerate(pages):
        near = range(max(0, number - _NEIGHBORHOOD), min(len(pages), number + _NEIGHBORHOOD + 1))
        seen = Counter(edge for other in near for edge in set(edges[other]))
        gone = set()
        for end, place, line in _edges(page):
            often = seen[end, _shape(line.text)] >= max(3, _MIN_REPEATED * len(near))
            if often or _PAGE_NUMBER.match(line.text.strip()):
                gone.add(place)
        kept.append([line for place, line in enumerate(page) if place not in gone])
    return kept


def _edges(page: Sequence[Line]) -> list[tuple[str, int, Line]]:
    """`(end, place, line)` of the highest and the lowest lines."""
    by_height = sorted(range(len(page)), key=lambda place: -page[place].bottom)
    most = min(_MARGIN_LINES, len(page) // 2)
    upper = [("top", place, page[place]) for place in by_height[:most]]
    return [*upper, *(("bottom", place, page[place]) for place in by_height[len(by_height) - most :])]


def _shape(text: str) -> str:
    """A line with the numbers at its ends blurred, so that page 3 looks like page 4."""
    return re.sub(r"^(?:\d+|[ivxlc]+)\b|\b(?:\d+|[ivxlc]+)$", "#", " ".join(text.lower().split()))


def _paragraphs(lines: Sequence[Line], vocabulary: Counter[str]) -> str:
    """Lines joined where one goes on in the next."""
    made: list[str] = []
    height = median(line.height for line in lines) if lines else 0.0
    reach = _reach(lines)
    for number, line in enumerate(lines):
        text = line.text.strip()
        before = lines[number - 1] if number else None
        if not text:
            continue
        if before is None or not made:
            made.append(text)
        elif _goes_on(before, line, reach, height):
            made[-1] = _joined(made[-1], text, vocabulary)
        else:
            made.append(("\n" if _apart(before, line, height) else "") + text)
    return "\n".join(made)


def _reach(lines: Iterable[Line]) -> dict[int, float]:
    """Right edge of each left edge (to a tenth of an inch): where its long lines end."""
    ends: dict[int, list[float]] = {}
    for line in lines:
        ends.setdefault(round(line.left / 7), []).append(line.right)
    return {left: max(rights) for left, rights in ends.items()}


def _goes_on(before: Line, line: Line, reach: dict[int, float], height: float) -> bool:
    """Whether `before` was broken because its line was full."""
    if before.bottom <= line.bottom:  # to the top of another column
        return bool(_BROKEN_WORD.search(before.text.rstrip()))
    if _apart(before, line, height) or abs(before.height - line.height) > 0.5 * max(before.height, line.height):
        return False
    width = before.right - before.left
    full = before.right >= reach.get(round(line.left / 7), 0) - 0.12 * max(width, 1) and len(before.text) >= 40
    wide_cjk = full or (bool(_ENDS_CJK.search(before.text.rstrip())) and width > 24 * height)
    return (
        wide_cjk and abs(line.left - before.left) < 3 * height and not re.match(r"[•·▪◦–*-]\s|\(?\d+[.)]\s", line.text)
    )


def _apart(before: Line, line: Line, height: float) -> bool:
    """Whether more than a line's distance lies between two lines."""
    return before.bottom - line.top > 0.9 * max(height, 1.0)


def _joined(left: str, right: str, vocabulary: Counter[str]) -> str:
    """Two parts of a paragraph, without the hyphen that a line break put into a word."""
    broken, beginning = _BROKEN_WORD.search(left), _WORD_BEGINNING.match(right)
    if broken and beginning:
        whole, compound = broken[1] + beginning[0], f"{broken[1]}-{beginning[0]}"
        if vocabulary[compound] > vocabulary[whole] or not beginning[0][0].islower():
            return left + right
        return left[:-1] + right
    if _ENDS_CJK.search(left) and _BEGINS_CJK.match(right):
        return left + right
    return f"{left} {right}"
