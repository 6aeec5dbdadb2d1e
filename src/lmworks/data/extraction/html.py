"""The main text of web pages, without menus, banners and footers. Knows no other format."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape
from typing import Any

from lmworks.core.errors import require
from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.result import Extracted, UnreadableError, known

_DECLARED = re.compile(rb"<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_HEAD_CHARACTERS = 100_000
"""Where titles, addresses and dates stand."""
_MAX_PARSED = 20_000_000
"""Characters of a page beyond which only its words are taken: trees take some thirty times its size."""
_MAX_DEPTH = 250
"""Elements inside each other beyond which tree walkers recurse too deep; real pages stay far below."""
_MAX_ATTRIBUTES = 2000
"""Of one element, beyond which comparing all of their names takes too long."""
_LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{4000,}")
_HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_TOKEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(?:script|style)\b.*?(?:</(?:script|style)[^>]*>|\Z)"
    r"|<(?P<closing>/?)(?P<name>[a-zA-Z][\w-]*)[^>]*(?:>|\Z)|<[!?][^>]*(?:>|\Z)|(?P<text>[^<]+|<)",
    re.IGNORECASE | re.DOTALL,
)
"""What a page is made of, each piece looked at once: what is never closed ends with the page."""
_VOID = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
))  # fmt: skip
_OFTEN_OPEN = frozenset(("p", "li", "td", "tr", "th", "dt", "dd", "option"))
"""Elements whose end may be left out."""
_SKIPPED = frozenset(
    ("script", "style", "noscript", "template", "svg", "head", "iframe", "nav", "header", "footer", "aside")
)
_BLOCKS = frozenset((
    "p", "div", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "table", "tr", "section",
    "article", "main", "pre", "blockquote", "br", "hr", "figure",
))  # fmt: skip
_CHROME = re.compile(
    r"(?<![\w-])(?:nav|navbar|nav-?(?:menu|bar|header|footer)|navigation|menu|(?:sphinx)?sidebar|breadcrumbs?|(?:page-|site-)?footer"
    r"|masthead|cookies?|(?:cookie-)?banner|share|social|related|pagination|adverts?|advertisement|toc(?:tree-wrapper)?)(?![\w-])",
    re.IGNORECASE,
)
"""Classes and names of blocks that surround the content."""
_NOTE = re.compile(r"(?:foot|end)?notes?\b|admonition|\btopic\b", re.IGNORECASE)
"""Asides that belong to the text they stand beside."""
_SURROUNDING = frozenset((
    "div", "ul", "ol", "section", "table", "form",
))  # fmt: skip
_ROLES = frozenset(("navigation", "search", "banner", "contentinfo", "complementary"))
_MIN_COVERED = 0.75
_MIN_COVERED_DECLARED = 0.5
_MAX_LINKS = 0.25
_SPACES = re.compile(r"[ \t\r\n\f]+")
_LICENSE = re.compile(
    r"<(?:a|link)\b(?=[^>]{0,500}\brel\s*=\s*[\"']?[^\"'>]*\blicense\b)[^>]{0,500}\bhref\s*=\s*[\"']?([^\"'>\s]+)",
    re.IGNORECASE,
)
_META = re.compile(r"<(?:meta|link)\b[^>]{0,1000}>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_FACTS = {"og:title": "title", "og:url": "url", "canonical": "url", "article:published_time": "date", "date": "date",
          "dc.date": "date", "dcterms.date": "date", "author": "author"}  # fmt: skip


def read_html(data: bytes, declared: str = "") -> Extracted:
    """The main text of a page; all of its text where no main part is found.

    trafilatura tells main part from menus by their look, and loses tables, listings and short sections of pages that
    have no menus at all. So where it takes most of what stands outside of navigation, and the rest holds few links, the
    page is taken whole.

    Args:
        data: the page.
        declared: its encoding, as a header told it.

    Raises:
        UnreadableError: `binary`, `encoding`, `no text`.
    """
    for name in ("trafilatura", "lxml_html_clean"):  # the last is left out by some installers
        require(name, "data")
    inside = _DECLARED.search(data[:4096])
    page, encoding = decode_named(data, declared or (inside[1].decode("ascii", "replace") if inside else ""))
    page = page.replace("\0", "")
    text = ""
    if len(page) <= _MAX_PARSED and _depth(page, _MAX_DEPTH) < _MAX_DEPTH and _attributes(page) < _MAX_ATTRIBUTES:
        text = _main_text(page)
    text = text or all_text(page)
    if not text.strip():
        raise UnreadableError("no text", "the page holds none")
    return Extracted(text, page_facts(page, encoding))


def _main_text(page: str) -> str:
    import trafilatura

    try:
        main = trafilatura.extract(page, include_comments=False) or ""
    except (RecursionError, ValueError, AssertionError):
        main = ""
    whole, of_links, declared = _whole(page)
    found = len("".join(main.split()))
    size = len("".join(whole.split()))
    if declared and found >= _MIN_COVERED_DECLARED * size:
        return whole
    return whole if found >= _MIN_COVERED * size and of_links <= _MAX_LINKS * max(size, 1) else main


def _whole(page: str) -> tuple[str, int, bool]:
    """All text outside of navigation, listings as they are; characters in links; whether a main part is marked."""
    from lxml import etree, html

    try:
        tree = html.document_fromstring(page.encode("utf-8", "replace"), html.HTMLParser(encoding="utf-8"))
    except (etree.ParserError, ValueError):
        return "", 0, False
    declared = tree.xpath("//main | //*[@role='main']")
    parts: list[str] = []
    of_links = kept_as_is = in_links = 0
    numbers: dict[Any, int] = {}

    def add(text: str | None) -> None:
        nonlocal of_links
        if text:
            parts.append(text if kept_as_is else _SPACES.sub(" ", text))
            of_links += len("".join(text.split())) if in_links else 0

    walk = etree.iterwalk(declared[0] if len(declared) == 1 else tree, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        name = element.tag
        if event == "end":
            kept_as_is -= name == "pre"
            in_links -= name == "a"
            parts.append("\n" if name in _BLOCKS else "")
            add(element.tail)
        elif event != "start":
            add(element.tail)
        elif _surrounds(element):
            walk.skip_subtree()
            element.text, element.tag = None, "span"  # its end is still told
        else:
            beside = name in ("td", "th") and element.getprevious() is not None
            parts.append("\n" if name in _BLOCKS else "\t" if beside else "")
            kept_as_is += name == "pre"
            in_links += name == "a"
            if name == "li" and (parent := element.getparent()) is not None and parent.tag == "ol":
                numbers[parent] = numbers[parent] + 1 if parent in numbers else _first_number(parent)
                add(f"{numbers[parent]}. ")
            add(element.text)
    return _lines("".join(parts)), of_links, len(declared) == 1


def _first_number(items: Any) -> int:
    start = items.get("start", "")
    return int(start) if start.isascii() and start.isdecimal() and len(start) < 7 else 1


def _surrounds(element: Any) -> bool:
    """Whether an element holds navigation or something that is not shown."""
    if element.get("role") in _ROLES or element.get("class") == "headerlink":
        return True
    if element.get("hidden") is not None or _HIDDEN.search(element.get("style", "")):
        return True
    named = f"{element.get('class', '')} {element.get('id', '')}"
    if element.tag == "aside":
        return _NOTE.search(f"{named} {element.get('role', '')}") is None
    if element.tag == "header":
        return next(element.iterancestors("article", "main", "section"), None) is None
    return element.tag in _SKIPPED or (element.tag in _SURROUNDING and _CHROME.search(named) is not None)


def _lines(text: str) -> str:
    """Lines without space at their ends, and no more than one empty one between two."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", re.sub(r"\n[ ]?(?=\S)", "\n", text))).strip()


def _depth(page: str, enough: int) -> int:
    """How deep elements lie inside each other, counted up to `enough`; what is never closed counts as open."""
    depth = deepest = 0
    open_tags: dict[str, int] = {}
    for closing, name in re.findall(r"<(/?)([a-zA-Z][\w-]*)", page):
        name = name.lower()
        if name in _VOID or name in _OFTEN_OPEN:
            continue
        if not closing:
            open_tags[name] = open_tags.get(name, 0) + 1
            depth += 1
            deepest = max(deepest, depth)
            if deepest >= enough:
                break
        elif open_tags.get(name):
            open_tags[name] -= 1
            depth -= 1
    return deepest


def _attributes(page: str) -> int:
    """How many attributes the element with the most has, about."""
    return max((tag[0].count("=") for tag in _LONG_TAG.finditer(page)), default=0)


def page_facts(page: str, encoding: str = "") -> dict[str, object]:
    """Title, address, date, language and licence, as far as the page's head tells them."""
    head = page[:_HEAD_CHARACTERS]
    facts: dict[str, str] = {}
    for tag in _META.findall(head):
        attributes = {m[0].lower(): unescape(m[1] or m[2] or m[3]) for m in _ATTRIBUTE.findall(tag)}
        name = (attributes.get("property") or attributes.get("name") or attributes.get("rel") or "").lower()
        value = attributes.get("content") or attributes.get("href") or ""
        if name in _FACTS and value:
            facts.setdefault(_FACTS[name], value)
    title = re.search(r"<title[^>]*>([^<]{1,500})", head, re.IGNORECASE)
    terms = _LICENSE.search(page[:_HEAD_CHARACTERS] + page[-_HEAD_CHARACTERS:])
    return known(
        title=unescape(title[1]) if title else facts.get("title", ""), url=facts.get("url", ""),
        date=facts.get("date", ""), author=facts.get("author", ""), license=unescape(terms[1]) if terms else "",
        encoding="" if encoding == "utf-8" else encoding,
    )  # fmt: skip


def all_text(page: str) -> str:
    """Every word outside of navigation that a reader would see, in time and memory that grow with the length alone."""
    parts: list[str] = []
    skipping: Counter[str] = Counter()
    for found in _TOKEN.finditer(page):
        name = (found["name"] or "").lower()
        if name in ("body", "main"):  # whatever was left open before them
            skipping.clear()
        elif name in _SKIPPED:
            skipping[name] += -1 if found["closing"] else 1
            if skipping[name] <= 0:
                del skipping[name]
        elif name in _BLOCKS:
            parts.append("\n")
        if found["text"] and not skipping:
            parts.append(_SPACES.sub(" ", found["text"]))
    return _lines(unescape("".join(parts)))
