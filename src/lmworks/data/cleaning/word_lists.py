"""Lists of words and phrases that a document may hold only so often: harmful, sensitive, or what a user names.

A list is a text file of one word or phrase a line; `#` begins a remark. Words are compared whole and without regard to
case; Han, kana and Hangul characters are words of their own. Knows no list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.generation import Document
from lmworks.data.cleaning.text_measures import CJK_RANGES
from lmworks.data.steps import Dropped, Tally

_WORD = re.compile(f"[{CJK_RANGES}]|[^\\W{CJK_RANGES}]+")


class WordListConfig(Config):
    """One list, and how much of it is too much."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    """As the report calls it, such as `harmful`."""
    path: Path
    """Text file of one word or phrase a line."""
    max_matches: Annotated[int, Field(ge=0)] = 0
    """A document with more occurrences is dropped."""


class Phrases:
    """Counts occurrences of phrases.

    Args:
        phrases: of one word or more each.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for words in sorted({tuple(_WORD.findall(phrase.casefold())) for phrase in phrases} - {()}):
            self._by_first.setdefault(words[0], []).append(words)

    def __len__(self) -> int:
        return sum(map(len, self._by_first.values()))

    def count(self, text: str) -> int:
        """Occurrences in a text; phrases that begin at one word count once."""
        words = _WORD.findall(text.casefold())
        if self._by_first.keys().isdisjoint(words):
            return 0
        return sum(
            any(tuple(words[at : at + len(phrase)]) == phrase for phrase in self._by_first.get(word, ()))
            for at, word in enumerate(words)
        )


class WordListStep:
    """Drop documents with too many words of a list.

    Raises:
        DataError: the list cannot be read.
    """

    def __init__(self, config: WordListConfig) -> None:
        self.config, self.phrases = config, read_phrases(config.path)

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`; the value is the number of occurrences."""
        found = self.phrases.count(document.text)
        if found:
            tally.count("listed_words", self.config.name, found)
        return Dropped(f"words/{self.config.name}", found) if found > self.config.max_matches else document


def read_phrases(path: Path) -> Phrases:
    """Read a list.

    Raises:
        DataError: the file cannot be read or names nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the word list {path} cannot be read: {error}", "Give a UTF-8 text file") from None
    found = Phrases(line.partition("#")[0] for line in lines)
    if not len(found):
        raise DataError(f"the word list {path} names no word", "Give one word or phrase a line")
    return found
