"""Whether a text says something new beside a pool of texts, by ROUGE-L or by MinHash. Knows not what the texts are.

ROUGE-L is the measure of Self-Instruct (Wang et al. 2023, arXiv:2212.10560), which keeps what is below 0.7 to all
others. Its longest common subsequence is computed on bits of one number (Hyyrö 2004), 64 and more words at a time.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.config import Config
from lmworks.data.cleaning.text_measures import CJK_RANGES
from lmworks.data.deduplication.fingerprints import DedupConfig, minhash
from lmworks.data.shingles import Shingles

_WORD = re.compile(f"[{CJK_RANGES}]|[^\\W_{CJK_RANGES}]+")
_HASHES = DedupConfig(ngram=3)


class NoveltyConfig(Config):
    """How new a text must be."""

    measure: Literal["rouge-l", "minhash", "none"] = "rouge-l"
    """`rouge-l` compares word sequences with every text of the pool; `minhash` is for pools of many thousands."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """A text as similar as this, or more, to one of the pool is not new."""


class Pool:
    """Texts that a new one is compared with.

    Args:
        config: measure and threshold.
    """

    def __init__(self, config: NoveltyConfig) -> None:
        self._config = config
        self._names: list[str] = []
        self._words: list[list[str]] = []
        self._signatures: NDArray[np.uint32] = np.empty((0, _HASHES.bands * _HASHES.rows), np.uint32)

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, text: str) -> None:
        """Put a text into the pool."""
        self._names.append(name)
        if self._config.measure == "rouge-l":
            self._words.append(words(text))
        elif self._config.measure == "minhash":
            self._signatures = np.concatenate([self._signatures, _signature(text)])

    def like(self, text: str) -> tuple[str, float] | None:
        """Name and similarity of the likest text of the pool, if it is so like that `text` is not new."""
        if self._config.measure == "none" or not self._names:
            return None
        if self._config.measure == "minhash":
            scores = (self._signatures == _signature(text)).mean(1)
        else:
            mine, least = words(text), self._config.threshold
            scores = np.asarray([_rouge_l(mine, other, least) for other in self._words])
        best = int(scores.argmax())
        return (self._names[best], float(scores[best])) if scores[best] >= self._config.threshold else None


def words(text: str) -> list[str]:
    """Words in lower case; each Han character, kana and Hangul syllable is one."""
    return _WORD.findall(text.lower())


def rouge_l(first: str, second: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), between 0 and 1."""
    return _rouge_l(words(first), words(second), 0.0)


def _rouge_l(first: list[str], second: list[str], least: float) -> float:
    """The score, or 0 where the lengths alone keep it below `least`."""
    both = len(first) + len(second)
    if not first or not second or 2 * min(len(first), len(second)) / both < least:
        return 0.0
    return 2 * _common(first, second) / both


def _common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence: the zeros that one addition a word leaves in a row of ones."""
    places: dict[str, int] = {}
    for number, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << number
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & full
    return len(first) - row.bit_count()


def _signature(text: str) -> NDArray[np.uint32]:
    """[1, hashes]; equal ones in the share of n-grams that texts have in common."""
    return minhash(Shingles([text]), _HASHES).transpose(1, 0, 2).reshape(1, -1)
