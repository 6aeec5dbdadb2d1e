"""The text of Jupyter notebooks: prose as Markdown, code in fences, without outputs. Knows no other format."""

from __future__ import annotations

import json
from typing import Any

from lmworks.data.extraction.encodings import decode
from lmworks.data.extraction.result import Extracted, UnreadableError, known


def read_notebook(data: bytes) -> Extracted:
    """The cells in their order.

    Raises:
        UnreadableError: `notebook` (it is none), `no text`, `binary`, `encoding`.
    """
    try:
        book = json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        raise UnreadableError("notebook", str(error)) from None
    sheets = book.get("worksheets") if isinstance(book, dict) else None  # of format 3
    cells = book.get("cells") if isinstance(book, dict) else None
    if cells is None and isinstance(sheets, list):
        cells = [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells") or []]
    if not isinstance(cells, list):
        raise UnreadableError("notebook", "it has no cells")
    language = _language(book)
    parts = []
    for cell in cells:
        if not isinstance(cell, dict):
            continue
        source = cell.get("source", cell.get("input", ""))
        text = ("".join(map(str, source)) if isinstance(source, list) else str(source)).strip()
        if text:
            parts.append(f"```{language}\n{text}\n```" if cell.get("cell_type") == "code" else text)
    if not parts:
        raise UnreadableError("no text", "its cells are empty")
    return Extracted("\n\n".join(parts) + "\n", known(code_language=language))


def _language(book: dict[str, Any]) -> str:
    for keys in (("metadata", "language_info", "name"), ("metadata", "kernelspec", "language")):
        value: Any = book
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and value.isprintable() and len(value) < 40:
            return value
    return ""
