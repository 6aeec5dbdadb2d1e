"""What lies in a folder, and what of it is not read: what `.gitignore` files name, links in circles, pipes and such.

Knows no formats.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lmworks.core.errors import require

_RULES = ".gitignore"
_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A file, or a folder that is not entered."""

    path: Path
    refused: str = ""
    """The reason under which it is counted; empty for a file to read."""
    why: str = ""


def entries(root: Path) -> list[Entry]:
    """Everything below a folder but what is hidden, in the order of the paths.

    A folder that is ignored is one entry. Rules above `root` do not hold in it: who gives a folder means it.

    Raises:
        MissingExtraError: there is a `.gitignore` and what reads it is not installed.
    """
    return sorted(_below(root), key=lambda entry: entry.path)


_Rules = tuple[tuple[Path, Any], ...]
"""Folders with the patterns of their `.gitignore`, the outermost first."""


def _below(root: Path) -> Iterator[Entry]:
    waiting: list[tuple[Path, _Rules]] = [(root, ())]  # of folders may be more inside each other than calls
    while waiting:
        folder, rules = waiting.pop()
        try:
            with os.scandir(folder) as found:
                names = {entry.name for entry in found}
        except OSError as error:
            yield Entry(folder, "unreadable", str(error))
            continue
        if _RULES in names:
            rules = (*rules, *_rules_in(folder))
        for path in (folder / name for name in names if not name.startswith(".")):
            try:
                mode = path.stat().st_mode
            except OSError as error:  # a link to nowhere, or in a circle
                yield Entry(path, "unreadable", str(error))
                continue
            if ignoring := _ignored(path, stat.S_ISDIR(mode), rules):
                yield Entry(path, "ignored", f"{ignoring} names it")
            elif stat.S_ISDIR(mode) and path.is_symlink():
                yield Entry(path, "link", "links to folders are not followed")
            elif stat.S_ISDIR(mode):
                waiting.append((path, rules))
            elif stat.S_ISREG(mode):
                yield Entry(path)
            else:
                yield Entry(path, "not a file", _KINDS.get(stat.S_IFMT(mode), "of an unknown kind"))


def _rules_in(folder: Path) -> _Rules:
    require("pathspec", "data")
    from pathspec import GitIgnoreSpec

    try:
        lines = (folder / _RULES).read_bytes().decode("utf-8", "surrogateescape").splitlines()
        return ((folder, GitIgnoreSpec.from_lines(lines)),)
    except (OSError, ValueError):  # unreadable, or a pattern that git itself passes over
        return ()


def _ignored(path: Path, is_folder: bool, rules: _Rules) -> str:
    """The file whose pattern ignores a path, as git decides: the innermost that says anything, and in it the last."""
    for folder, patterns in reversed(rules):
        relative = path.relative_to(folder).as_posix() + "/" * is_folder
        decided = patterns.check_file(relative).include
        if decided is not None:
            return f"{folder.name}/{_RULES}" if decided else ""
    return ""


def readable_name(name: str | PurePosixPath) -> str:
    """A name that can be written as UTF-8: bytes that are none of it by their hexadecimal numbers."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
