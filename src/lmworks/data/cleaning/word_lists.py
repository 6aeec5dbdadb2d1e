"""Lists of words and phrases that a document may hold only so often: harmful, sensitive, or what a user names.

A list is a text file of one word or phrase a line; `#` begins a remark. Words are compared whole, without regard to
case and to the width or style of letters (`ｂａｄ` is `bad`), but accents count. Punctuation is not seen: `bad-word` is
`bad word`, and `f**k` is `f k`. Where a script has no spaces every character is a word, so that a phrase is found
anywhere. Other ways of hiding a word, such as `b4d`, have to be listed. Knows no list.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.generation import Document
from lmworks.data.cleaning.text_measures import CJK_RANGES
from lmworks.data.steps import Dropped, Tally

_UNSPACED = CJK_RANGES + "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Han, kana, Hangul; Thai, Lao; Burmese; Khmer."""


_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


@cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A mark on a letter, such as a vowel of Hindi; and a word as `_WORD` has it, with its marks."""
    unspaced = re.compile(f"[{_UNSPACED}]")
    found = (c for c in map(chr, range(0x10000)) if unicodedata.category(c)[0] == "M" and not unspaced.match(c))
    marks = "".join(found)
    return re.compile(f"[{marks}]"), re.compile(f"[{_UNSPACED}]|(?:[^\\W_{_UNSPACED}]|[{marks}])+")


def _words(text: str) -> list[str]:
    text = text.casefold()
    if text.isascii():
        return _WORD.findall(text)
    mark, marked_word = _marks()
    text = unicodedata.normalize("NFKC", text)
    return (marked_word if mark.search(text) else _WORD).findall(text)


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
        self._phrases = {tuple(_words(phrase)) for phrase in phrases} - {()}
        self._lengths: dict[str, set[int]] = {}
        """How many words phrases have, by their first."""
        for words in self._phrases:
            self._lengths.setdefault(words[0], set()).add(len(words))

    def __len__(self) -> int:
        return len(self._phrases)

    def count(self, text: str) -> int:
        """Occurrences in a text; phrases that begin at one word count once."""
        words = _words(text)
        if self._lengths.keys().isdisjoint(words):
            return 0
        return sum(
            any(tuple(words[at : at + length]) in self._phrases for length in self._lengths.get(word, ()))
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
