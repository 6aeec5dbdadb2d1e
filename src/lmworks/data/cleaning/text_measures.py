"""What filters look at: figures of one text, each computed at most once.

A "word" is a run of letters, digits and apostrophes between white space, or one Han, kana or Hangul
character, so that the figures also hold for scripts without spaces. Knows no threshold.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property

CJK_RANGES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
CJK = re.compile(f"[{CJK_RANGES}]")
_WORDS = re.compile(f"[{CJK_RANGES}]|[^\\s{CJK_RANGES}]+")
_BULLETS = ("•", "‣", "▪", "◦", "●", "· ", "- ", "* ", "+ ", "– ")
_LINE_END = (".", "!", "?", '"', "'", "”", "’", ":", ";", ")", "。", "！", "？", "」", "』", "：", "；", "）", "…")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


class TextMeasures:
    """Figures of a text; shares lie between 0 and 1."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """In order."""
        return _WORDS.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Those that are not blank, stripped."""
        return [line for raw in self.text.split("\n") if (line := raw.strip())]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Parts between blank lines."""
        return [part for raw in self.text.split("\n\n") if (part := raw.strip())]

    @cached_property
    def spaced(self) -> bool:
        """Whether the script puts spaces between words: fewer than 30 % of the characters are Han, kana or Hangul."""
        return self.text.isascii() or len(CJK.findall(self.text)) < 0.3 * len(self.text)

    @property
    def characters(self) -> float:
        """Length."""
        return len(self.text)

    @property
    def word_count(self) -> float:
        """Words, or characters where no spaces divide them."""
        return len(self.words)

    @property
    def mean_word_length(self) -> float:
        """Characters in a word."""
        return sum(map(len, self.words)) / max(len(self.words), 1)

    @property
    def symbols_per_word(self) -> float:
        """Number signs and ellipses against words."""
        text = self.text
        return (text.count("#") + text.count("…") + text.count("...")) / max(len(self.words), 1)

    @property
    def alphabetic_words(self) -> float:
        """Share of words with a letter in them."""
        return sum(any(map(str.isalpha, word)) for word in self.words) / max(len(self.words), 1)

    @property
    def stop_words(self) -> float:
        """How many of eight common English words occur."""
        return len(STOP_WORDS & {word.lower() for word in self.words})

    @property
    def bullet_lines(self) -> float:
        """Share of lines that begin with a bullet."""
        return sum(line.startswith(_BULLETS) for line in self.lines) / max(len(self.lines), 1)

    @property
    def ellipsis_lines(self) -> float:
        """Share of lines that end in an ellipsis."""
        return sum(line.endswith(("...", "…")) for line in self.lines) / max(len(self.lines), 1)

    @property
    def punctuated_lines(self) -> float:
        """Share of lines that end in punctuation."""
        return sum(line.endswith(_LINE_END) for line in self.lines) / max(len(self.lines), 1)

    @property
    def short_lines(self) -> float:
        """Share of lines shorter than 30 characters."""
        return sum(len(line) < 30 for line in self.lines) / max(len(self.lines), 1)

    @property
    def longest_line(self) -> float:
        """Characters of the longest line."""
        return max(map(len, self.lines), default=0)

    @property
    def mean_line(self) -> float:
        """Characters in a line."""
        return sum(map(len, self.lines)) / max(len(self.lines), 1)

    @property
    def alphanumeric(self) -> float:
        """Share of characters that are letters or digits."""
        return sum(map(str.isalnum, self.text)) / max(len(self.text), 1)

    def repeated(self, parts: list[str], *, in_characters: bool) -> float:
        """Share of parts (or of their characters) that already occurred before."""
        seen: set[str] = set()
        again = total = 0
        for part in parts:
            size = len(part) if in_characters else 1
            total += size
            again += size if part in seen else 0
            seen.add(part)
        return again / max(total, 1)

    def _ngrams(self, n: int) -> list[tuple[str, ...]]:
        return list(zip(*(self.words[i:] for i in range(n)), strict=False))

    def top_ngram(self, n: int) -> float:
        """Share of the characters that the most frequent n-gram of words makes up, where it occurs twice or more."""
        grams = self._ngrams(n)
        if len(set(grams)) == len(grams):
            return 0.0
        counts = Counter(grams)
        most = max(counts.values())
        longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == most)
        return most * longest / max(sum(map(len, self.words)), 1)

    @cached_property
    def _repeats_five(self) -> bool:
        grams = self._ngrams(5)
        return len(set(grams)) < len(grams)

    def repeated_ngrams(self, n: int) -> float:
        """Share of the characters inside n-grams of words (n ≥ 5) that occur more than once, each counted once."""
        if not self._repeats_five:  # then no longer n-gram repeats either
            return 0.0
        grams = self._ngrams(n)
        counts = Counter(grams)
        covered, inside = 0, 0
        for position, gram in enumerate(grams):
            if counts[gram] > 1:
                covered += sum(len(w) for w in self.words[max(position, inside) : position + n])
                inside = position + n
        return covered / max(sum(map(len, self.words)), 1)
