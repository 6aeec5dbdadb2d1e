"""Synthetic documents with planted near-duplicates, and what theory says of finding them. Knows no contestant."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WORDS_A_DOCUMENT = 480
"""Some 3 kB."""


def vocabulary() -> list[str]:
    """Words of the standard library's sources, the most frequent first."""
    counts: dict[str, int] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for word in re.findall(r"[A-Za-z]{2,}", path.read_text(encoding="utf-8", errors="replace")):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))


def documents(count: int, seed: int, duplicates: float = 0.1) -> list[str]:
    """Texts of which a share copies one before it with 1 to 30 % of the words replaced."""
    rng = np.random.default_rng(seed)
    words = np.asarray(vocabulary(), object)
    shares = 1 / np.arange(10, len(words) + 10)
    cumulative = np.cumsum(shares / shares.sum())
    texts: list[str] = []
    recent: list[NDArray[np.int64]] = []
    for number in range(count):
        drawn = np.searchsorted(cumulative, rng.random(WORDS_A_DOCUMENT))
        if recent and rng.random() < duplicates:
            drawn = edited(recent[int(rng.integers(len(recent)))], rng.uniform(0.01, 0.3), len(words), rng)
        elif len(recent) < 1000 or number % 100 == 0:
            recent = [*recent[-999:], drawn]
        texts.append(" ".join(words[np.minimum(drawn, len(words) - 1)]))
    return texts


def edited(drawn: NDArray[np.int64], rate: float, vocabulary_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A copy in which each word is replaced with the chance `rate`."""
    return np.where(rng.random(len(drawn)) < rate, rng.integers(0, vocabulary_size, len(drawn)), drawn)


def chance_of_meeting(similarity: float, bands: int, rows: int) -> float:
    """That two texts agree in all rows of a band: the S-curve (Leskovec et al., Mining of Massive Datasets, 3.4)."""
    return float(1 - (1 - similarity**rows) ** bands)


def chance_of_grouping(similarity: float, bands: int, rows: int, threshold: float) -> float:
    """That they meet and that at least `threshold` of all hashes agree, from the binomials of the bands."""
    counts = np.arange(rows + 1)
    ways = np.cumprod(np.concatenate([[1.0], (rows - counts[:-1]) / (counts[:-1] + 1)]))
    band = ways * similarity**counts * (1 - similarity) ** (rows - counts)
    unmet = np.where(counts == rows, 0.0, band)
    every, apart = np.ones(1), np.ones(1)
    for _ in range(bands):
        every, apart = np.convolve(every, band), np.convolve(apart, unmet)
    least = int(np.ceil(threshold * bands * rows - 1e-9))
    return float((every - apart)[least:].sum())
