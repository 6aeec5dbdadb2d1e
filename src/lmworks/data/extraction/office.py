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
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_OPEN_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"


class _Package:
    """The members of a zip archive, as long as they stay small together."""

    def __init__(self, data: bytes, kind: str) -> None:
        require("lxml", "data")
        self.kind, self._left = kind, _MAX_BYTES
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except (*DAMAGE, ValueError, OSError) as error:
            raise UnreadableError(kind, f"no zip archive: {error}") from None

    def bytes_of(self, name: str) -> bytes:
        """A member.

        Raises:
            UnreadableError: it is not there or damaged.
            DataError: the archive holds too much.
        """
        try:
            with self._archive.open(name) as stream:
                data = io.BufferedReader(BoundedReader(stream, self._left, f"the {self.kind} file")).read()
        except KeyError:
            raise UnreadableError(self.kind, f"it has no member {name!r}") from None
        except (*DAMAGE, RuntimeError, ValueError, OSError) as error:  # RuntimeError: it asks for a password
            raise UnreadableError(self.kind, f"{name}: {error}") from None
        self._left -= len(data)
        return data

    def elements(self, name: str) -> Iterator[tuple[str, Any]]:
        """`(event, element)` of a member, without entities and bounded in depth; what was passed is forgotten."""
        from lxml import etree

        stream = io.BytesIO(self.bytes_of(name))
        try:
            yield from etree.iterparse(
                stream, events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False
            )
        except etree.XMLSyntaxError as error:
            raise UnreadableError(self.kind, f"{name}: {error}") from None

    def facts(self, name: str) -> dict[str, str]:
        """Title, author, date, language and rights in Dublin Core."""
        found: dict[str, str] = {}
        for event, element in self.elements(name):
            if event == "end" and isinstance(element.tag, str) and element.text:
                found.setdefault(element.tag.rpartition("}")[2].lower(), element.text)
        return known(title=found.get("title", ""), author=found.get("creator", ""),
                     date=found.get("created", found.get("date", "")), license=found.get("rights", ""))  # fmt: skip


def read_docx(data: bytes) -> Extracted:
    """Paragraphs, one a line; cells of a table's row beside each other; without deleted text."""
    package = _Package(data, "docx")
    lines: list[list[str]] = [[]]
    in_row = 0
    for event, element in package.elements("word/document.xml"):
        name = element.tag.removeprefix(_WORD)
        if event == "start":
            in_row += name == "tr"
            continue
        if name == "t":
            lines[-1].append(element.text or "")
        elif name in ("tab", "tc"):
            lines[-1].append("\t")
        elif name in ("br", "cr", "tr") or (name == "p" and not in_row):
            in_row -= name == "tr"
            lines.append([])
        elif name == "p":
            lines[-1].append(" ")
        if name in ("p", "tr"):
            element.clear()
    facts = _optional_facts(package, "docProps/core.xml")
    return _extracted("\n".join(" ".join("".join(line).split(" ")).strip() for line in lines), facts, "docx")


def read_odt(data: bytes) -> Extracted:
    """Paragraphs and headings, one a line."""
    package = _Package(data, "odt")
    parts: list[str] = []
    inside = 0
    for event, element in package.elements("content.xml"):
        name = str(element.tag).removeprefix(_OPEN_TEXT)
        if event == "start":
            inside += name in ("p", "h")
            if inside and name in ("s", "tab", "line-break"):
                parts.append("\n" if name == "line-break" else " ")
            continue
        if name in ("p", "h"):
            inside -= 1
            if not inside:
                parts.append("".join(element.itertext()) + "\n")
    return _extracted("".join(parts), _optional_facts(package, "meta.xml"), "odt")


def read_epub(data: bytes) -> Extracted:
    """The chapters in the order of the spine."""
    package = _Package(data, "epub")
    root = next(
        (e.get("full-path") for event, e in package.elements("META-INF/container.xml")
         if event == "start" and str(e.tag).endswith("}rootfile") and e.get("full-path")), None,
    )  # fmt: skip
    if root is None:
        raise UnreadableError("epub", "its container names no package")
    manifest: dict[str, tuple[str, str]] = {}
    spine: list[str] = []
    for event, element in package.elements(root):
        if event == "end":
            continue
        name = str(element.tag).rpartition("}")[2]
        if name == "item":
            manifest[element.get("id", "")] = (element.get("href", ""), element.get("properties", "") or "")
        elif name == "itemref" and element.get("linear") != "no":
            spine.append(element.get("idref", ""))
    chapters = []
    for chapter in dict.fromkeys(spine):
        href, properties = manifest.get(chapter, ("", ""))
        if not href or "nav" in properties.split():
            continue
        try:
            chapters.append(read_html(package.bytes_of(posixpath.normpath(
                posixpath.join(posixpath.dirname(root), unquote(href.partition("#")[0]))
            ))).text)  # fmt: skip
        except UnreadableError:
            continue  # a cover, or a chapter that is missing: the others are worth having
    return _extracted("\n\n".join(chapters), _optional_facts(package, root), "epub")


def _optional_facts(package: _Package, name: str) -> dict[str, str]:
    try:
        return package.facts(name)
    except UnreadableError:
        return {}


def _extracted(text: str, facts: dict[str, str], kind: str) -> Extracted:
    if not text.strip():
        raise UnreadableError("no text", f"the {kind} file holds none")
    return Extracted(text.strip() + "\n", dict(facts))
