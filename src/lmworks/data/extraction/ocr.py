"""The text of scanned PDF pages: rendered by PDFium, recognized by RapidOCR, whose wheel holds its models.

Chinese and English; knows no layout rule. Needs the extra `ocr`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lmworks.core.errors import require
from lmworks.data.extraction.pdf_layout import Line

_DOTS_PER_INCH = 150
_POINTS_PER_INCH = 72
_MAX_PIXELS = 4000
"""Of a page's longer side, however large its format."""
_MIN_SCORE = 0.5
"""Confidence below which a recognized line is more often a stain than text."""


def recognized_lines(page: Any) -> list[Line]:
    """The lines of a PDFium page, recognized from its picture, from top to bottom."""
    width, height = page.get_size()
    scale = min(_DOTS_PER_INCH / _POINTS_PER_INCH, _MAX_PIXELS / max(width, height, 1.0))
    picture = page.render(scale=scale).to_numpy()
    found = _engine()(picture)
    if found.txts is None or found.boxes is None:
        return []
    lines = []
    for text, box, score in zip(found.txts, found.boxes, found.scores, strict=True):
        if score >= _MIN_SCORE and text.strip():
            xs, ys = [float(x) / scale for x, _ in box], [height - float(y) / scale for _, y in box]
            lines.append(Line(text.strip(), min(xs), min(ys), max(xs), max(ys)))
    return lines


@lru_cache(maxsize=1)
def _engine() -> Any:
    require("rapidocr", "ocr")
    from rapidocr import RapidOCR

    return RapidOCR()
