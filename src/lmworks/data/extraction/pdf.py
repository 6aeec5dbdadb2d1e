"""The text of PDF files, by PDFium: lines with their places, put in reading order by `pdf_layout`.

Knows neither layout rules nor how pictures of text are recognized.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from lmworks.core.errors import require
from lmworks.data.extraction.pdf_layout import Line, running_text
from lmworks.data.extraction.result import Extracted, UnreadableError, known

MAX_PAGES = 20_000
MAX_CHARACTERS = 50_000_000
_MAX_JUNK = 1 << 16
"""Bytes before the file begins, as servers and mail leave them there; PDFium looks past some."""
_GAP = 2.0
"""Widths of a space, in heights of the line, from which the text beside it stands in another column."""
_LOOKED_AT = 200
"""Letters of a page by which its direction is told."""
_SCANNED = 10
"""Characters of a page below which it may be a picture of text."""


def read_pdf(data: bytes, ocr: bool = False) -> Extracted:
    """The text of all pages.

    Args:
        data: the file.
        ocr: recognize the text of pages that hold none.

    Raises:
        UnreadableError: `encrypted`, `pdf` (damaged), `no text` (its pages are pictures, or empty).
    """
    require("pypdfium2", "data")
    import pypdfium2
    from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY

    begin = data.find(b"%PDF-", 0, _MAX_JUNK)
    try:
        document = pypdfium2.PdfDocument(data[begin:] if begin > 0 else data)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY):
            raise UnreadableError("encrypted", "the PDF asks for a password") from None
        raise UnreadableError("pdf", str(error)) from None
    try:
        return _read(document, ocr)
    except pypdfium2.PdfiumError as error:
        raise UnreadableError("pdf", str(error)) from None
    finally:
        document.close()


def _read(document: Any, ocr: bool) -> Extracted:
    import pypdfium2

    pages: list[list[Line]] = []
    broken = pictures = characters = 0
    count = len(document)
    for number in range(min(count, MAX_PAGES)):
        lines: list[Line] = []
        try:
            page = document[number]
            lines = _lines(page)
            if sum(len(line.text) for line in lines) < _SCANNED and _has_picture(page):
                pictures += 1
                if ocr:
                    from lmworks.data.extraction.ocr import recognized_lines

                    lines = recognized_lines(page)
        except pypdfium2.PdfiumError:
            broken += 1
        pages.append(lines)
        characters += sum(len(line.text) for line in lines)
        if characters > MAX_CHARACTERS:
            raise UnreadableError("too large", f"the first {number + 1} pages hold {characters:,} characters")
    text = running_text(pages)
    if not text.strip():
        if broken:
            raise UnreadableError("pdf", f"{broken} of {count} pages are damaged and the others hold no text")
        raise UnreadableError("no text", f"{pictures} of {count} pages are pictures only; recognize them with ocr")
    facts = document.get_metadata_dict(skip_empty=True)
    scanned = 0 if ocr else pictures
    meta = known(title=facts.get("Title", ""), date=_date(facts.get("CreationDate", "")), pages=count,
                 broken_pages=broken, pages_without_text=scanned)  # fmt: skip
    return Extracted(text, meta)


def _lines(page: Any) -> list[Line]:
    """The lines of a page in the order of the file, cut where a wide gap separates columns, as if it were upright."""
    from pypdfium2.raw import FPDFText_GetCharBox, FPDFText_GetCharIndexFromTextIndex

    textpage = page.get_textpage()
    turns = _quarter_turns(textpage)
    shown, upright = page.get_rotation(), -90 * turns % 360
    if shown != upright:  # PDFium puts letters in order as they are shown, here lying or upside down
        page.set_rotation(upright)
        textpage = page.get_textpage()
        page.set_rotation(shown)
    text = textpage.get_text_range()
    # Where PDFium leaves characters out of the text, or puts some in, its boxes are counted otherwise.
    plain = len(text) == textpage.count_chars()
    edges = [ctypes.c_double() for _ in range(4)]

    def box(place: int) -> _Box:
        index = place if plain else FPDFText_GetCharIndexFromTextIndex(textpage, place)
        if index < 0 or not FPDFText_GetCharBox(textpage, index, *edges):
            return _NOWHERE
        left, right, bottom, top = (edge.value for edge in edges)
        return (
            (left, bottom, right, top), (-top, left, -bottom, right), (-right, -top, -left, -bottom),
            (bottom, -right, top, -left),
        )[turns]  # fmt: skip

    made, begin = [], 0
    for line in text.splitlines(keepends=True):
        made += _cut(line, begin, box)
        begin += len(line)
    return made


def _quarter_turns(textpage: Any) -> int:
    """How often most of a page's letters are turned to the right by 90°, as in tables printed across."""
    from pypdfium2.raw import FPDFText_GetCharAngle

    count = textpage.count_chars()
    angles = (FPDFText_GetCharAngle(textpage, place) for place in range(0, count, count // _LOOKED_AT + 1))
    turns = Counter(round(angle / (math.pi / 2)) % 4 for angle in angles if angle >= 0)  # -1 of what is no letter
    return turns.most_common(1)[0][0] if turns else 0


_Box = tuple[float, float, float, float]
_NOWHERE: _Box = (0.0, 0.0, 0.0, 0.0)
_Word = tuple[str, _Box, _Box]
"""Letters, and the boxes of the first and the last."""


def _cut(line: str, begin: int, box: Callable[[int], _Box]) -> list[Line]:
    """The pieces of one line: each with the box from its first to its last character."""
    words: list[_Word] = []
    place = 0
    for letters in line.split():
        place = line.index(letters, place)
        words.append((letters, box(begin + place), box(begin + place + len(letters) - 1)))
        place += len(letters)
    pieces: list[list[_Word]] = []
    for word in words:
        first, last = word[1], pieces[-1][-1][2] if pieces else _NOWHERE
        height = max(first[3] - first[1], last[3] - last[1], 4.0)
        if pieces and first[0] - last[2] <= _GAP * height:
            pieces[-1].append(word)
        else:
            pieces.append([word])
    made = []
    for piece in pieces:
        boxes = [b for word in piece for b in word[1:] if any(b)]
        if boxes:
            lefts, bottoms, rights, tops = zip(*boxes, strict=True)
            edges = (min(lefts), min(bottoms), max(rights), max(tops))
        else:
            edges = _NOWHERE
        made.append(Line(" ".join(word for word, _, _ in piece), *edges))
    return made


def _has_picture(page: Any) -> bool:
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    return any(True for _ in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=4))


def _date(written: str) -> str:
    """`D:20221217…` as 2022-12-17."""
    digits = written.removeprefix("D:")[:8]
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}" if len(digits) == 8 and digits.isdigit() else ""
