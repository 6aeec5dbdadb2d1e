"""Readers of manuals that Debian packages hold: from their markup to rows, a page or chapter each.

A row whose page states a licence of its own carries it; the others are under the source's. Knows neither archives nor
indexes.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from lmworks.core.errors import require
from lmworks.data.acquisition import manual_page, restructured_text
from lmworks.data.acquisition.readers import Members, Row
from lmworks.data.extraction.code import stated_license
from lmworks.data.extraction.encodings import decode
from lmworks.data.extraction.extract import extract
from lmworks.data.extraction.result import RowFields

_HAN = re.compile("[\u4e00-\u9fff]")
_LATIN_WORD = re.compile("[A-Za-z]{2,}")
_MAX_LATIN_WORDS = 5
"""A paragraph of a Chinese page with more of them and no Han character is one that nobody translated."""
_TRANSLATORS_NOTE = re.compile(r"\n+跋\n+本页面中文版由.*", re.DOTALL)
"""The same at the end of every page."""
_OTHER_TERMS = {"man1/kill.1": "GPL-2.0-only", "man7/epoll.7": "GPL-2.0-or-later", "man6/intro.6": "GPL-2.0-or-later"}
"""Pages of manpages-zh that its copyright file names apart."""
_TASKS = {
    "zh": ("Translate into Chinese:\n\n{}", "把下面的英文译成中文：\n\n{}", "How would you say this in Chinese?\n\n{}"),
    "en": ("Translate into English:\n\n{}", "把下面的中文译成英文：\n\n{}", "这句话用英文怎么说？\n\n{}"),
}


def kernel_docs(members: Members) -> Iterator[Row]:
    """Pages of the kernel's documentation that are no translation."""
    return _kernel_pages(members, translated=False)


def kernel_docs_zh(members: Members) -> Iterator[Row]:
    """Pages that were translated into Chinese."""
    return _kernel_pages(members, translated=True)


def _kernel_pages(members: Members, translated: bool) -> Iterator[Row]:
    for name, stream in members:
        page = _below(name, "_sources")
        if page.startswith("translations/") != translated:
            continue
        source = decode(stream.read())
        if text := restructured_text.plain_text(source):
            terms = stated_license(source)
            yield {"text": text, "source": page} | ({"license": terms} if terms else {})


def python_docs(members: Members) -> Iterator[Row]:
    """Pages of Python's documentation."""
    for name, stream in members:
        if text := restructured_text.plain_text(decode(stream.read())):
            yield {"text": text, "source": _below(name, "_sources")}


def _below(name: str, folder: str) -> str:
    """The path below a folder, without what a page's name ends with."""
    return name.partition(f"/{folder}/")[2].removesuffix(".txt").removesuffix(".rst")


def manual_pages_zh(members: Members) -> Iterator[Row]:
    """Manual pages in Chinese; some are translated in part, which a language filter tells."""
    for name, stream in members:
        page = "/".join(PurePosixPath(name).parts[-2:]).removesuffix(".gz")
        with gzip.open(stream) as source:  # its bounds are the archive's: a page is never a thousand times its size
            text = _TRANSLATORS_NOTE.sub("", manual_page.plain_text(decode(source.read())))
        if text:
            terms = {"license": _OTHER_TERMS[page]} if page in _OTHER_TERMS else {}
            yield {"text": text, "source": page} | terms


def debian_reference(members: Members) -> Iterator[Row]:
    """Chapters of the Debian Reference."""
    for name, stream in members:
        chapter = PurePosixPath(name).name
        if not chapter.startswith("index."):
            yield {"text": extract(".html", stream.read(), RowFields()).text, "source": chapter.removesuffix(".html")}


def libreoffice_help(members: Members) -> Iterator[Row]:
    """Pages of LibreOffice's help; paragraphs of a Chinese one that nobody translated are left out."""
    for name, stream in members:
        language, page = _help_page(name)
        kept = [text for text in _paragraphs(stream.read()).values() if language == "en-US" or _is_translated(text)]
        if kept:
            yield {"text": "\n\n".join(kept), "source": page}


def libreoffice_pairs(members: Members) -> Iterator[Row]:
    """Paragraphs that both languages have, each once and in one of the two directions."""
    english: dict[str, dict[str, str]] = {}
    seen: set[tuple[str, str]] = set()
    for name, stream in members:
        language, page = _help_page(name)
        paragraphs = _paragraphs(stream.read())
        if language == "en-US":
            english[page] = paragraphs
            continue
        for identity, chinese in paragraphs.items():
            pair = (english.get(page, {}).get(identity, ""), chinese)
            if pair[0] and _HAN.search(chinese) and not _HAN.search(pair[0]) and pair not in seen:
                seen.add(pair)
                yield {"messages": _translation(*pair), "source": f"{page}#{identity}"}


def _translation(english: str, chinese: str) -> list[dict[str, str]]:
    """A request and its answer; the same pair always gives the same direction and phrasing."""
    choice = int.from_bytes(hashlib.blake2b(english.encode(), digest_size=4).digest(), "big")
    into, asked, answer = ("zh", english, chinese) if choice % 2 else ("en", chinese, english)
    phrasings = _TASKS[into]
    request = phrasings[choice // 2 % len(phrasings)].format(asked)
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def _help_page(name: str) -> tuple[str, str]:
    """Language and path of a page: `…/help/en-US/text/swriter/guide/footer.html`."""
    language, _, page = name.partition("/help/")[2].partition("/text/")
    return language, page.removesuffix(".html")


def _is_translated(text: str) -> bool:
    return bool(_HAN.search(text)) or len(_LATIN_WORD.findall(text)) <= _MAX_LATIN_WORDS


def _paragraphs(page: bytes) -> dict[str, str]:
    """Headings and paragraphs by their identity, which is the same in every language; code keeps its lines."""
    require("lxml", "data")
    from lxml import html

    found: dict[str, str] = {}
    tree = html.document_fromstring(page, html.HTMLParser(encoding="utf-8"))
    for number, element in enumerate(tree.iter("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre")):
        identity = str(element.get("id", ""))
        if element.tag == "pre":
            identity = f"code_{number}"
        elif not identity.startswith(("par_", "hd_", "tit")):
            continue
        text = _text(element)
        if text:
            found.setdefault(identity, text)
    return found


def _text(element: Any) -> str:
    text = "".join(element.itertext())
    return text.strip("\n") if element.tag == "pre" else " ".join(text.split())
