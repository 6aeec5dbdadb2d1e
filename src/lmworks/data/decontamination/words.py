"""Text as words that compare equal where only case, punctuation, width or the spelling of a number differ.

A word is a run of letters and digits, a number with its separators, or one Han, kana or Hangul character. Each keeps
its place, so that what matched can be shown and cut. Knows no evaluation set.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from lmworks.data.cleaning.text_measures import CJK_RANGES

_WORD = re.compile(rf"[{CJK_RANGES}]|\d+(?:[.,]\d+)+(?![^\W{CJK_RANGES}])|[^\W_{CJK_RANGES}]+")
_NUMBERS = {
    name: str(value)
    for value, name in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
}  # fmt: skip


def words(text: str) -> Iterator[tuple[str, int, int]]:
    """`(normalized word, start, end)` of every word."""
    for match in _WORD.finditer(text):
        yield normalized(match.group()), match.start(), match.end()


def spelled(text: str) -> list[str]:
    """The same words as they are spelled in the text."""
    return _WORD.findall(text)


@lru_cache(maxsize=1 << 16)
def normalized(word: str) -> str:
    """One spelling of a word: `Ｃａｆé` as `café`, `1,000.0` as `1000`, `seven` as `7`."""
    folded = unicodedata.normalize("NFKC", word).casefold()
    if folded[:1].isdigit() and ("," in folded or "." in folded):
        folded = folded.replace(",", "")
        if folded.count(".") == 1:
            folded = folded.rstrip("0").rstrip(".")
    return _NUMBERS.get(folded, folded)
