"""An n-gram model of words: how surprising a text is to someone who read the training text.

Interpolated modified Kneser-Ney over the words of `shingles.py`: runs of letters and digits without case and
punctuation, Han, kana and Hangul characters one by one; every digit is read as 0. A text is one run of words, so it
scores the same however its lines are wrapped. Grams are 64-bit hashes, so a model holds no word that could be read.
Knows no thresholds and no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.data.cleaning.kneser_ney import Counts, Grams, Level, estimate_discounts, level, run_starts
from lmworks.data.shingles import MAX_N, Shingles
from lmworks.data.shuffle import mix

_START = 0
"""Before a text's first word. Hashes of words are odd, so neither this nor the next is one."""
_UNKNOWN = 2
_BASE = np.uint64(0x9E3779B97F4A7C15)
_DIGIT = re.compile(r"\d")
_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class WordNgramModel:
    """p(word | the words before it).

    Args:
        levels: of grams of one word, two words and so on.
    """

    levels: tuple[Level, ...]

    @property
    def vocabulary(self) -> int:
        """Different words of the training text."""
        return len(self.levels[0].grams)

    @classmethod
    def fit(cls, texts: Sequence[str], ngram: int) -> WordNgramModel:
        """Count the grams of texts.

        A model takes 24 bytes and more for every different gram, training some 60 for every word of the texts.

        Args:
            texts: each on its own.
            ngram: words of the longest gram.

        Raises:
            DataError: the texts have no word.
        """
        assert 1 <= ngram < MAX_N, "the start symbols between texts bound n"
        symbols, _, _ = _symbols(texts)
        places = np.flatnonzero(symbols)
        if not len(places):
            raise DataError("the texts to learn from have no word", "Give text")
        keys = _keys(symbols, places, ngram)
        order = np.argsort(keys, kind="stable")
        starts = run_starts(keys[order])
        places = places[order[starts]]  # one place of each gram stands for it
        grams, raw = keys[order[starts]], np.diff(np.append(starts, len(order)))
        levels = [_level(symbols, places, grams, raw, ngram)]
        for words in range(ngram - 1, 0, -1):
            # Without its oldest word a gram is one of the level below: how many become it are its left neighbors.
            keys = _keys(symbols, places, words)
            order = np.argsort(keys, kind="stable")
            starts = run_starts(keys[order])
            neighbors, raw = np.diff(np.append(starts, len(order))), np.add.reduceat(raw[order], starts)
            places, grams = places[order[starts]], keys[order[starts]]
            # Only a start symbol precedes a start symbol, so grams at the head of a text keep their occurrences.
            at_head = symbols[places - words + 1] == _START
            levels.append(_level(symbols, places, grams, np.where(at_head, raw, neighbors), words))
        return cls(tuple(levels[::-1]))

    def perplexities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts] perplexity per word; a text without words has that of one unknown word."""
        found = np.empty(len(texts))
        for begin in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[begin : begin + _TEXTS_AT_ONCE]
            symbols, starts, lengths = _symbols(some)
            symbols[starts[lengths == 0]] = _UNKNOWN
            places, counts = np.flatnonzero(symbols), np.maximum(lengths, 1)
            surprise = -np.log(self._probabilities(symbols, places))
            found[begin : begin + len(some)] = np.exp(np.add.reduceat(surprise, np.cumsum(counts) - counts) / counts)
        return found

    def _probabilities(self, symbols: Grams, places: Counts) -> NDArray[np.float64]:
        """[places] p(symbol at a place | those before it), from single words up."""
        probability = np.full(len(places), 1 / (self.vocabulary + 1))  # each word, and one for all the others
        for words, grams in enumerate(self.levels, 1):
            contexts = _keys(symbols, places - 1, words - 1)
            probability = grams.probabilities(_keys(symbols, places, words), contexts, probability)
        return probability


def _symbols(texts: Sequence[str]) -> tuple[Grams, Counts, Counts]:
    """Hashes of all words with start symbols before each text; where each text begins, and its number of words."""
    shingles = Shingles(_DIGIT.sub("0", text) for text in texts)  # which end each text with MAX_N zeros
    symbols = np.concatenate([np.full(MAX_N, _START, np.uint64), shingles.flat])
    return symbols, shingles.starts + MAX_N, shingles.lengths


def _keys(symbols: Grams, places: Counts, words: int) -> Grams:
    """[places] a number of the so many symbols that end at each place."""
    combined = np.zeros(len(places), np.uint64)
    for back in range(words - 1, -1, -1):
        combined = combined * _BASE + symbols[places - back]
    return mix(combined)


def _level(symbols: Grams, places: Counts, grams: Grams, counts: Counts, words: int) -> Level:
    return level(grams, counts, _keys(symbols, places - 1, words - 1), estimate_discounts(counts))
