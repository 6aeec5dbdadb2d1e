"""Names of persons from a list that the user gives. Knows no language model and guesses nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmworks.core.errors import DataError
from lmworks.data.cleaning.text_measures import CJK, CJK_RANGES

_PART = re.compile(rf"[^\W\d_{CJK_RANGES}][\w'’-]*|[{CJK_RANGES}]")


@dataclass(frozen=True)
class NameList:
    """Finds the listed names, as they are spelled, the longest first; a name is not found within a longer word."""

    names: frozenset[tuple[str, ...]]
    """Each as its words; a Chinese, Japanese or Korean character is a word."""
    longest: int

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """`(start, end)` of each name."""
        parts = [(match.group(), *match.span()) for match in _PART.finditer(text)]
        at = 0
        while at < len(parts):
            for length in range(min(self.longest, len(parts) - at), 0, -1):
                if tuple(word for word, _, _ in parts[at : at + length]) in self.names:
                    yield parts[at][1], parts[at + length - 1][2]
                    at += length
                    break
            else:
                at += 1


def read_names(file: Path) -> NameList:
    """One name a line, such as `Ada Lovelace` or `李明`.

    Raises:
        DataError: the file cannot be read, holds no name, or one of a single Chinese character.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the names in {file}: {error}", "Give a UTF-8 file with one name a line") from None
    names = {line: tuple(match.group() for match in _PART.finditer(line)) for line in lines if line}
    for line, parts in names.items():
        if not parts or (len(parts) == 1 and CJK.fullmatch(parts[0])):
            raise DataError(f"{file} names {line!r}, which would match everywhere", "Give whole names")
    if not names:
        raise DataError(f"{file} holds no names", "Give one name a line")
    return NameList(frozenset(names.values()), max(map(len, names.values())))
