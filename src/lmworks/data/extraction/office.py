"""The text of EPUB, DOCX and ODT files: XML in a zip archive. Knows no other format."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from lmworks.core.errors import require
from lmworks.data.acquisition.archive import DAMAGE, BoundedReader
from lmworks.data.extraction.html import read_html
from lmworks.data.extraction.result import Extracted, UnreadableError, known

_MAX_BYTES = 1 << 28
"""Most that one of these files may hold when decompressed."""
_OPEN_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_NOT_SHOWN = frozenset(("Fallback", "moveFrom", "del", "tracked-changes", "annotation"))
"""Elements of DOCX and ODT that repeat what stands elsewhere, or that are no longer or not yet part of the text."""
_NOTES = ("footnotes.xml", "endnotes.xml")
_PAGES = (".xhtml", ".html", ".htm", ".xml")


class _Package:
    """The members of a zip archive, as long as they stay small together."""

    def __init__(self, data: bytes, kind: str) -> None:
        require("lxml", "data")
        self.kind, self._left = kind, _MAX_BYTES
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except (*DAMAGE, ValueError, OSError) as error:
            raise UnreadableError(kind, f"no zip archive: {error}") from None
        self.names = self._archive.namelist()
        self._as_written = {name.lower(): name for name in self.names}

    def bytes_of(self, name: str) -> bytes:
        """A member, whether its name is written in capitals or not.

        Raises:
            UnreadableError: it is not there or damaged.
            DataError: the archive holds too much.
        """
        try:
            with self._archive.open(self._as_written.get(name.lower(), name)) as stream:
                data = io.BufferedReader(BoundedReader(stream, self._left, f"the {self.kind} file")).read()
        except KeyError:
            raise UnreadableError(self.kind, f"it has no member {name!r}") from None
        except (*DAMAGE, RuntimeError, ValueError, OSError) as error:  # RuntimeError: it asks for a password
            raise UnreadableError(self.kind, f"{name}: {error}") from None
        self._left -= len(data)
        return data

    def elements(self, name: str) -> Iterator[tuple[str, str, Any]]:
        """`(event, name without its space, element)` of a member, without entities and bounded in depth."""
        from lxml import etree

        stream = io.BytesIO(self.bytes_of(name))
        try:
            for event, element in etree.iterparse(
                stream, events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False
            ):
                yield event, str(element.tag).rpartition("}")[2], element
        except etree.XMLSyntaxError as error:
            raise UnreadableError(self.kind, f"{name}: {error}") from None

    def facts(self, name: str) -> dict[str, str]:
        """Title, author, date, language and rights in Dublin Core; nothing where the member is missing or damaged."""
        found: dict[str, str] = {}
        try:
            for event, tag, element in self.elements(name):
                if event == "end" and element.text:
                    found.setdefault(tag.lower(), element.text)
        except UnreadableError:
            return {}
        return known(title=found.get("title", ""), author=found.get("creator", ""),
                     date=found.get("created", found.get("date", "")), license=found.get("rights", ""))  # fmt: skip

    def extracted(self, lines: list[str], facts: dict[str, str]) -> Extracted:
        """The lines as a text.

        Raises:
            UnreadableError: `no text`.
        """
        text = "\n".join(lines).strip()
        if not text:
            raise UnreadableError("no text", f"the {self.kind} file holds none")
        return Extracted(f"{text}\n", facts)


def read_docx(data: bytes) -> Extracted:
    """Paragraphs, one a line; cells of a table's row beside each other; text boxes behind their paragraph, notes last.

    Deleted text, headers, footers and comments are left out.
    """
    package = _Package(data, "docx")
    document = "word/document.xml"
    if "_rels/.rels" in package.names:
        document = next(
            (element.get("Target", "").lstrip("/") for _, _, element in package.elements("_rels/.rels")
             if element.get("Type", "").endswith("/officeDocument")), document,
        )  # fmt: skip
    lines = _word_lines(package, document)
    for notes in _NOTES:
        beside = posixpath.join(posixpath.dirname(document), notes)
        if beside in package.names:
            lines += _word_lines(package, beside)
    return package.extracted(lines, package.facts("docProps/core.xml"))


class _Story:
    """Lines of the text itself or of a text box; `boxes` waits for the end of the line that it is anchored in."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.boxes: list[str] = []
        self.pieces: list[str] = []
        self.rows = 0

    def end_line(self) -> None:
        self.lines += [" ".join("".join(self.pieces).split(" ")).strip(), *self.boxes]
        self.pieces, self.boxes = [], []


def _word_lines(package: _Package, member: str) -> list[str]:
    stories = [_Story()]
    hidden = 0
    for event, name, element in package.elements(member):
        if name in _NOT_SHOWN:
            hidden += 1 if event == "start" else -1
        story = stories[-1]
        if hidden:
            continue
        if event == "start":
            story.rows += name == "tr"
            if name == "txbxContent":
                stories.append(_Story())
        elif name == "t":
            story.pieces.append(element.text or "")
        elif name in ("tab", "tc"):
            story.pieces.append("\t")
        elif name == "noBreakHyphen":
            story.pieces.append("-")
        elif name in ("br", "cr") or (name == "p" and not story.rows):
            story.end_line()
        elif name == "tr":
            story.rows -= 1
            story.end_line()
        elif name == "p":
            story.pieces.append(" ")
        elif name == "txbxContent":
            stories.pop()
            stories[-1].boxes += story.lines
        if event == "end" and name in ("p", "tr"):
            element.clear()
    return stories[0].lines


def read_odt(data: bytes) -> Extracted:
    """Paragraphs and headings, one a line; cells of a row beside each other; text boxes and notes as in DOCX."""
    package = _Package(data, "odt")
    lines: list[str] = []
    notes: list[str] = []
    row: list[str] = []
    inside = hidden = rows = 0
    for event, name, element in package.elements("content.xml"):
        step = 1 if event == "start" else -1
        hidden += step * (name in _NOT_SHOWN)
        rows += step * (name == "table-row")
        paragraph = element.tag in (f"{_OPEN_TEXT}p", f"{_OPEN_TEXT}h")
        inside += step * paragraph
        if event == "start" or hidden:
            continue
        if paragraph and not inside:
            boxes: list[str] = []
            text = _open_text(element, boxes, notes)
            (row if rows else lines).append(text)
            (row if rows else lines).extend(boxes)
        elif name == "table-row" and not rows:
            lines.append("\t".join(row))
            row = []
    return package.extracted(lines + notes, package.facts("meta.xml"))


def _open_text(element: Any, boxes: list[str], notes: list[str]) -> str:
    """The text of a paragraph; that of its boxes and notes goes where those are gathered."""
    parts = [element.text or ""]
    for child in element:
        name = str(child.tag).rpartition("}")[2]
        if name in ("s", "tab", "line-break"):
            count = child.get(f"{_OPEN_TEXT}c", "1")
            parts.append({"s": " " * min(int(count) if count.isdecimal() else 1, 100), "tab": "\t"}.get(name, "\n"))
        elif name == "note":
            body = child.find(f"{_OPEN_TEXT}note-body")
            notes.extend(_open_text(p, boxes, notes) for p in (body if body is not None else ()))
        elif name == "text-box":
            boxes.extend(_open_text(p, boxes, notes) for p in child)
        elif name not in _NOT_SHOWN:
            parts.append(_open_text(child, boxes, notes))
        parts.append(child.tail or "")
    return "".join(parts)


def read_epub(data: bytes) -> Extracted:
    """The chapters in the order of the spine; of the manifest or of their names where there is no spine to follow."""
    package = _Package(data, "epub")
    root = _package_document(package)
    spine, manifest = _reading_order(package, root)
    pages = sorted(name for name in package.names if name.lower().endswith(_PAGES) and "META-INF" not in name)
    for order in (spine, manifest, pages):
        chapters = []
        for name in dict.fromkeys(order):
            try:
                chapters.append(read_html(package.bytes_of(name)).text)
            except UnreadableError:
                continue  # a cover, or a chapter that is missing: the others are worth having
        if chapters:
            return package.extracted(["\n\n".join(chapters)], package.facts(root))
    raise UnreadableError("no text", "the epub file holds none")


def _package_document(package: _Package) -> str:
    try:
        for event, name, element in package.elements("META-INF/container.xml"):
            if event == "start" and name == "rootfile" and element.get("full-path"):
                return str(element.get("full-path"))
    except UnreadableError:
        pass
    return next((name for name in package.names if name.lower().endswith(".opf")), "")


def _reading_order(package: _Package, root: str) -> tuple[list[str], list[str]]:
    """Members that the spine names, and the manifest's pages but the table of contents; what a damaged one tells."""
    manifest: dict[str, str] = {}
    spine: list[str] = []
    try:
        for event, name, element in package.elements(root):
            if event == "end":
                continue
            if name == "item" and "nav" not in element.get("properties", "").split():
                href = unquote(element.get("href", "").partition("#")[0])
                manifest[element.get("id", "")] = posixpath.normpath(posixpath.join(posixpath.dirname(root), href))
            elif name == "itemref" and element.get("linear") != "no":
                spine.append(element.get("idref", ""))
    except UnreadableError:
        pass
    pages = [name for name in manifest.values() if name.lower().endswith(_PAGES)]
    return [manifest[chapter] for chapter in spine if chapter in manifest], pages
