"""The text of reStructuredText as a reader sees it, without directives, roles, targets and underlines.

It reads what documentation of Linux and Python is written in: prose, lists, listings, tables, and the directives that
carry text. docutils would do it by its own tree, and knows none of Sphinx's directives. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmworks.data.acquisition.wrapped_lines import unwrapped

_DROPPED = frozenset((
    "toctree", "include", "literalinclude", "kernel-include", "kernel-doc", "kernel-feat", "kernel-abi", "raw", "image",
    "figure", "kernel-figure", "kernel-render", "index", "module", "currentmodule", "c:namespace", "sectionauthor",
    "moduleauthor", "codeauthor", "contents", "tabularcolumns", "cssclass", "highlight", "sectnum", "meta", "program",
    "testsetup", "testcleanup", "default-role", "role", "audit-event", "limited-api-list", "miscnews", "title",
    "maintainers-include", "default-domain", "availability",
))  # fmt: skip
"""Directives without text of their own."""
_LISTINGS = frozenset((
    "code-block", "code", "sourcecode", "doctest", "testcode", "testoutput", "parsed-literal", "math", "productionlist",
    "csv-table",
))  # fmt: skip
"""Directives whose content is kept letter by letter."""
_SILENT = frozenset((
    "note", "warning", "important", "tip", "hint", "caution", "attention", "danger", "error", "only", "ifconfig",
    "container", "glossary", "class", "hlist", "highlights",
))  # fmt: skip
"""Directives whose content is text and whose argument, where it stands alone, is none."""
_LIST_TABLES = frozenset(("list-table", "flat-table"))
"""Tables written as a list of rows, each a list of cells."""
_VERSIONS = {
    "versionadded": "New in version", "versionchanged": "Changed in version", "deprecated": "Deprecated since version",
    "deprecated-removed": "Deprecated since version",
}  # fmt: skip
"""What Sphinx writes in front of a version."""

_EXPLICIT = re.compile(r"(\s*)\.\.(?:\s+(.*))?$")
_DIRECTIVE = re.compile(r"([A-Za-z][\w:+.-]*?)\s?::(?:\s+(.*))?$")
_FOOTNOTE = re.compile(r"\[(#?[\w.-]*|\*)\]\s+(.*)$")
_OPTION = re.compile(r"\s+:[\w -]+:(\s|$)")
_FIELD = re.compile(r":([^:`\s][^:`]*):(?:\s+(.*))?$")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1+\s*$")
_CELL = re.compile(r"\*?\s+-(?:\s+(.*))?$")
_SPAN = re.compile(r":[rc]span:`\d+`")
_TABLE_EDGE = re.compile(r"\s*(?:\+[-=+]{2,}\+|=+(?:\s+=+)+)\s*$")
_ITEM = re.compile(r"(?:[-*+•]|\(?(?:\d{1,3}|[A-Za-z]|#|[ivxlc]{2,5})[.)])\s+(?=\S)")

_ROLE = re.compile(r"(?::[A-Za-z][\w+.-]*)+:`(.+?)(?<!\\)`", re.DOTALL)
_LITERAL = re.compile(r"``(.+?)``", re.DOTALL)
_LINK = re.compile(r"`([^`]+?)`(?:__?)?(?!`)", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*\\])(\*\*?)(?=[^\s*])([^*]+?)(?<=[^\s\\])\1(?![\w*])")
_TARGET = re.compile(r"\s*<[^<>]*>$")
_MARK = re.compile(r"\[(?:#([\w-]*)|(\d+|\*))\]_\b")
_REFERENCE = re.compile(r"(?<![\w`])([A-Za-z][\w.-]{0,80}[A-Za-z0-9])__?(?=[\s.,;:)]|$)")
_SUBSTITUTION = re.compile(r"^\.\. \|([^|]+)\| replace:: *(.+(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def plain_text(source: str) -> str:
    """What a document says, each paragraph on one line, listings and tables as they stand."""
    source = source.expandtabs(8)
    for name, value in _SUBSTITUTION.findall(source):
        source = source.replace(f"|{name}|", unwrapped(value.splitlines()))
    lines = _without_front_matter([line.rstrip() for line in source.splitlines()])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_blocks(lines))).strip("\n")


def _without_front_matter(lines: list[str]) -> list[str]:
    """Leave out the fields before the first paragraph: authors, translators, where the original lies."""
    kept: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if _FIELD.match(line):
            at = _end_of_block(lines, at + 1, 0)
            continue
        text = line.strip() and not _ADORNMENT.match(line) and not _EXPLICIT.match(line)
        titled = at + 1 < len(lines) and _ADORNMENT.match(lines[at + 1])
        if text and not titled and not line.startswith(" "):
            break
        kept.append(line)
        at += 1
    return kept + lines[at:]


def _end_of_block(lines: list[str], at: int, indent: int) -> int:
    """The first line from `at` on that has text and is indented by no more than `indent`."""
    end = at
    for number in range(at, len(lines)):
        if lines[number]:
            if _indent(lines[number]) <= indent:
                break
            end = number + 1
    return end


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _dedented(lines: list[str]) -> list[str]:
    common = min((_indent(line) for line in lines if line), default=0)
    return [line[common:] for line in lines]


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line:
            yield ""
            at += 1
        elif explicit := _EXPLICIT.match(line):
            end = _end_of_block(lines, at + 1, len(explicit[1]))
            if not explicit[2] and at + 1 < len(lines) and not lines[at + 1]:
                end = at + 1  # an empty comment takes nothing with it
            yield from _explicit(explicit[2] or "", lines[at + 1 : end])
            at = end
        elif _TABLE_EDGE.match(line):
            end = _end_of_table(lines, at)
            rows = (row.strip().strip("|").rstrip() for row in lines[at:end] if not _TABLE_EDGE.match(row))
            yield from ("", *(_inline(row.strip()) for row in rows if row.strip(" |")), "")
            at = end
        elif line.lstrip().startswith((">>> ", "| ")):  # what a session or a poem says stands in its own lines
            while at < len(lines) and lines[at]:
                yield lines[at].removeprefix("| ")
                at += 1
        else:
            end = at + 1
            while end < len(lines) and lines[end] and not _EXPLICIT.match(lines[end]):
                end += 1
            yield from _paragraph(lines[at:end])
            if lines[end - 1].endswith("::"):
                begin, end = end, _end_of_block(lines, end, _indent(lines[end - 1]))
                yield from lines[begin:end]
            at = end


def _end_of_table(lines: list[str], at: int) -> int:
    """Behind the last edge of a table: the first one with an empty line behind it."""
    grid = lines[at].lstrip().startswith("+")
    for number in range(at + 1, len(lines)):
        if grid and not lines[number]:
            return number
        if _TABLE_EDGE.match(lines[number]) and (number + 1 == len(lines) or not lines[number + 1]):
            return number + 1
    return at + 1


def _explicit(head: str, body: list[str]) -> Iterator[str]:
    """What of a directive, footnote, target or comment is text."""
    directive = _DIRECTIVE.match(head)
    if directive is None:
        if footnote := _FOOTNOTE.match(head):
            yield _inline(unwrapped([f"[{footnote[1].lstrip('#')}] {footnote[2]}", *body]))
        return
    name, argument = directive[1].lower(), directive[2] or ""
    if name in _DROPPED:
        return
    at = 0
    if name not in _SILENT and name not in _LISTINGS and name not in _VERSIONS:
        while at < len(body) and body[at] and not _OPTION.match(body[at]) and argument:  # it may go on for lines
            argument += f"\n{body[at].strip()}"
            at += 1
    while at < len(body) and _OPTION.match(body[at]):
        at += 1
    content = _dedented(body[at:])
    if name in _VERSIONS:
        argument = f"{_VERSIONS[name]} {argument}".rstrip()
    yield ""
    if name in _LISTINGS:
        yield from content
    elif name in _LIST_TABLES:
        yield from (argument and _inline(argument), *_rows(content))
    else:
        if name not in _SILENT:
            yield _inline(argument)
        elif not re.fullmatch(r"[\w-]*", argument):  # its text begins behind its name
            content = [argument, *content]
        yield from _blocks(content)
    yield ""


def _rows(lines: list[str]) -> Iterator[str]:
    """The rows of a table that is written as a list, each on a line."""
    row: list[list[str]] = []
    for line in (*lines, "*"):
        if line.startswith("*") and row:
            yield " | ".join(filter(None, (_inline(unwrapped(cell)) for cell in row)))
            row = []
        if cell := _CELL.match(line):
            row.append([_SPAN.sub("", cell[1] or "")])
        elif row and not _EXPLICIT.match(line):
            row[-1].append(_SPAN.sub("", line))


def _paragraph(lines: list[str]) -> Iterator[str]:
    """A title, or items and terms each on their line; the lines that go on with one are joined to it."""
    kept = [line for line in lines if not _ADORNMENT.match(line)]
    if kept and _ADORNMENT.match(lines[0]):
        kept[0] = kept[0].lstrip()
    parts: list[list[str]] = []
    depth = 0
    for line in kept:
        item = _ITEM.match(line.lstrip())
        if not parts or item or _indent(line) > depth or _FIELD.match(line.lstrip()):
            parts.append([])
            depth = _indent(line) + (item.end() if item else 0)
        elif _indent(line) < depth:
            parts.append([])
            depth = _indent(line)
        parts[-1].append(line)
    for part in parts:
        text = unwrapped(part)
        if text.endswith("::"):
            text = text[:-2].rstrip() if text.endswith(" ::") or text == "::" else text[:-1]
        if field := _FIELD.match(text):
            text = f"{field[1]}: {field[2] or ''}".rstrip()
        yield " " * min(_indent(part[0]), 8) + _inline(text) if text else ""


def _inline(text: str) -> str:
    """Text without the marks of roles, literals, links and emphasis."""
    kept: list[str] = []

    def keep(literal: str) -> str:
        kept.append(literal)
        return f"\0{len(kept) - 1}\0"

    text = text.replace("\0", "")
    text = _LITERAL.sub(lambda m: keep(m[1]), text)
    text = _ROLE.sub(lambda m: keep(_shown(m[1])), text)
    text = _LINK.sub(lambda m: keep(_TARGET.sub("", m[1])), text)
    text = _EMPHASIS.sub(lambda m: m[2], text)
    text = _MARK.sub(lambda m: f"[{m[1] or m[2]}]" if m[1] or m[2] else "", text)
    text = _REFERENCE.sub(lambda m: m[1], text)
    text = re.sub(r"\\(\s|.)", lambda m: "" if m[1].isspace() else m[1], text)
    return re.sub("\0(\\d+)\0", lambda m: kept[int(m[1])], text)


def _shown(content: str) -> str:
    """What a role shows: its title, or the last part of a name behind `~`."""
    titled = _TARGET.sub("", content)
    if titled and titled != content:
        return titled
    if content.startswith("~"):
        return content.rpartition(".")[2].lstrip("~")
    return content.lstrip("!")
