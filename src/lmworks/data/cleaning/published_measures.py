"""Figures that Gopher's, C4's and FineWeb's rules are defined by, each computed at most once for a text.

They follow the words, lines and denominators of datatrove's filters to the letter, so that decisions agree; where its
n-grams are joined without spaces, ours are compared word by word. Knows no threshold.
"""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np

from lmworks.data.cleaning.lexicon import Words
from lmworks.data.cleaning.punctuation import LINE_ENDS
from lmworks.data.cleaning.repetition import NGrams, repeated_parts
from lmworks.data.cleaning.text_measures import TextMeasures

_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")
_SHORT_LINE = 30


class PublishedMeasures(TextMeasures):
    """Figures of a text; shares lie between 0 and 1 unless stated."""

    @cached_property
    def tokens(self) -> Words:
        """English words with punctuation marks as words of their own."""
        return Words.of(self.text)

    @cached_property
    def ngrams(self) -> NGrams:
        """Over these words."""
        return NGrams(self.tokens.hashes, self.tokens.lengths)

    @cached_property
    def character_ngrams(self) -> NGrams:
        """Over the characters that are not white space, for scripts without spaces between words."""
        codes = np.frombuffer("".join(self.text.split()).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        return NGrams(codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), np.ones(len(codes), dtype=np.int64))

    @cached_property
    def physical_lines(self) -> list[str]:
        """Blank ones too."""
        return self.text.splitlines()

    @cached_property
    def filled_lines(self) -> list[str]:
        """Those that are not blank, as they are."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def _paragraph_repeats(self) -> tuple[float, float]:
        parts = _PARAGRAPH_END.split(self.text.strip())
        count, characters = repeated_parts(parts)
        return count / len(parts), characters / max(len(self.text), 1)

    @cached_property
    def _line_repeats(self) -> tuple[float, float]:
        parts = _LINE_END.split(self.text)
        count, characters = repeated_parts(parts)
        return count / len(parts), characters / max(len(self.text), 1)

    def paragraph_repeats(self, *, in_characters: bool) -> float:
        """Share of paragraphs that occurred before, or their characters' share of the text."""
        return self._paragraph_repeats[in_characters]

    def line_repeats(self, *, in_characters: bool) -> float:
        """Share of lines that occurred before, or their characters' share of the text."""
        return self._line_repeats[in_characters]

    def top_words(self, n: int) -> float:
        """Share of the text that the most frequent n-gram of words makes up."""
        return self.ngrams.top(n) / max(len(self.text), 1)

    def repeated_words(self, n: int) -> float:
        """Share of the text inside n-grams of words that occurred before."""
        return self.ngrams.repeated(n) / max(len(self.text), 1)

    @property
    def mean_solid_word(self) -> float:
        """Mean length of words that are not of punctuation alone."""
        return self.tokens.solid_characters / max(self.tokens.solid, 1)

    def per_word(self, *symbols: str) -> float:
        """Occurrences of symbols against words; may exceed 1."""
        return sum(map(self.text.count, symbols)) / max(self.tokens.count, 1)

    @property
    def bullet_starts(self) -> float:
        """Share of lines that begin with a bullet or hyphen."""
        lines = self.physical_lines
        return sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(len(lines), 1)

    @property
    def ellipsis_ends(self) -> float:
        """Share of lines that end in an ellipsis."""
        if "..." not in self.text and "…" not in self.text:
            return 0.0
        lines = self.physical_lines
        return sum(line.rstrip().endswith(("...", "…")) for line in lines) / max(len(lines), 1)

    @property
    def lettered_words(self) -> float:
        """Share of words with a letter."""
        return self.tokens.alphabetic / max(self.tokens.count, 1)

    @property
    def line_ends(self) -> float:
        """Share of filled lines that end in terminal punctuation."""
        lines = self.filled_lines
        return sum(line[-1] in LINE_ENDS for line in lines) / max(len(lines), 1)

    @property
    def short_line_share(self) -> float:
        """Share of filled lines of at most 30 characters."""
        lines = self.filled_lines
        return sum(len(line) <= _SHORT_LINE for line in lines) / max(len(lines), 1)

    @property
    def repeated_line_characters(self) -> float:
        """Share of the characters, newlines apart, in filled lines that occurred before."""
        return repeated_parts(self.filled_lines)[1] / max(len(self.text) - self.text.count("\n"), 1)

    @property
    def newlines_per_word(self) -> float:
        """Newlines against words; may exceed 1."""
        return self.text.count("\n") / max(self.tokens.count, 1)
