"""Words of a text as arrays, from figures that are computed once for each distinct run of characters.

A text is cut at white space; most runs were met before, so that a look-up in a dictionary replaces the cutting of words
and every loop over characters. What is remembered never changes a figure. Knows no rule.
"""

from __future__ import annotations

import threading
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.english_words import split_run
from lmworks.data.cleaning.punctuation import SENTENCE_ENDS, SYMBOLS

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
MOST_RUNS = 500_000
MOST_CHARACTERS = 32_000_000
"""Of remembered runs; then all are forgotten."""

_COLUMNS = (
    "words",
    "alphabetic",
    "solid",
    "solid_characters",
    "stop_words",
    "starts_after_end",
    "starts",
    "ends",
    "clear",
)
_AT = {name: number for number, name in enumerate(_COLUMNS)}
_STOP_BITS = {word: 1 << bit for bit, word in enumerate(STOP_WORDS)}


class _Lexicon(dict[str, int]):
    """Each run's number, and by it a row of figures and the run's words."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._characters = 0
        self.figures = np.zeros((1024, len(_COLUMNS)), dtype=np.int64)
        self.first_word = np.zeros(1025, dtype=np.int64)
        self.word_hashes = np.zeros(2048, dtype=np.int64)
        self.word_lengths = np.zeros(2048, dtype=np.int64)

    @property
    def full(self) -> bool:
        """Whether it is time to begin anew."""
        return len(self) >= MOST_RUNS or self._characters >= MOST_CHARACTERS

    def __missing__(self, run: str) -> int:
        with self._lock:
            if run in self:  # another thread was faster
                return self[run]
            number, words = len(self), split_run(run)
            if number + 1 >= len(self.figures):
                self.figures = _doubled(self.figures)
                self.first_word = _doubled(self.first_word)
            start = int(self.first_word[number])
            while start + len(words) > len(self.word_hashes):
                self.word_hashes, self.word_lengths = _doubled(self.word_hashes), _doubled(self.word_lengths)
            end = start + len(words)
            self.word_hashes[start:end] = [hash(word) for word in words]
            self.word_lengths[start:end] = [len(word) for word in words]
            self.first_word[number + 1] = end
            self.figures[number] = _figures(words)
            self._characters += len(run)
            self[run] = number
            return number


_Scalar = TypeVar("_Scalar", bound=np.generic)


def _doubled(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    return np.concatenate([array, np.zeros_like(array)])


def _figures(words: tuple[str, ...]) -> list[int]:
    alphabetic = solid = solid_characters = stop_words = 0
    # Sentences that start in here where one has just ended, and where not; and whether one has ended by now: the rule
    # of spaCy's sentencizer. A run of closing marks alone leaves that as it was.
    starts_after_end = starts = 0
    ended_before, ended = True, False
    clear = False
    for word in words:
        letters = word.isalpha() or any(map(str.isalpha, word))
        alphabetic += letters
        if letters or any(c not in SYMBOLS for c in word):
            solid += 1
            solid_characters += len(word)
            stop_words |= _STOP_BITS.get(word, 0)
        if word in SENTENCE_ENDS:
            ended_before = ended = clear = True
        elif letters or any(unicodedata.category(c)[0] != "P" for c in word):
            starts_after_end, starts = starts_after_end + ended_before, starts + ended
            ended_before = ended = False
            clear = True
    return [len(words), alphabetic, solid, solid_characters, stop_words, starts_after_end, starts, ended, clear]


_shared = _Lexicon()


def forget() -> None:
    """Begin anew, as a process does; for measuring."""
    global _shared
    _shared = _Lexicon()


@dataclass(frozen=True)
class Words:
    """The words of a text, as numbers and lengths.

    Args:
        runs: number of each run of the text in `lexicon`, [R].
        lexicon: what they refer to.
    """

    runs: NDArray[np.int64]
    lexicon: _Lexicon

    @classmethod
    def of(cls, text: str) -> Words:
        """Cut a text."""
        global _shared
        lexicon = _shared
        if lexicon.full:
            lexicon = _shared = _Lexicon()
        runs = text.split()
        numbers = np.fromiter(map(lexicon.__getitem__, runs), dtype=np.int64, count=len(runs))
        return cls(numbers, lexicon)

    @cached_property
    def _totals(self) -> NDArray[np.int64]:
        return self.lexicon.figures[self.runs].sum(axis=0)

    @property
    def count(self) -> int:
        """All words, punctuation marks among them."""
        return int(self._totals[_AT["words"]])

    @property
    def alphabetic(self) -> int:
        """Words with a letter."""
        return int(self._totals[_AT["alphabetic"]])

    @property
    def solid(self) -> int:
        """Words that are not of punctuation alone."""
        return int(self._totals[_AT["solid"]])

    @property
    def solid_characters(self) -> int:
        """Characters of these."""
        return int(self._totals[_AT["solid_characters"]])

    @property
    def stop_words(self) -> int:
        """How many of the eight stop words occur, as written."""
        return int(np.bitwise_or.reduce(self.lexicon.figures[self.runs, _AT["stop_words"]], initial=0)).bit_count()

    @property
    def sentences(self) -> int:
        """Sentences, at least one."""
        figures = self.lexicon.figures[self.runs]
        figures = figures[figures[:, _AT["clear"]] == 1]  # a run that leaves open what it found starts nothing either
        ended = np.concatenate([[0], figures[:-1, _AT["ends"]]])
        starts = np.where(ended == 1, figures[:, _AT["starts_after_end"]], figures[:, _AT["starts"]])
        return 1 + int(starts.sum()) if len(figures) else 1

    @cached_property
    def _positions(self) -> NDArray[np.int64]:
        first = self.lexicon.first_word
        sizes = self.lexicon.figures[self.runs, _AT["words"]]
        skipped = np.repeat(first[self.runs] - np.cumsum(sizes) + sizes, sizes)
        return skipped + np.arange(len(skipped))

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """A number for each word, equal for equal words."""
        return self.lexicon.word_hashes[self._positions].view(np.uint64)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each word."""
        return self.lexicon.word_lengths[self._positions]
