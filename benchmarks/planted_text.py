"""Documents with planted near-duplicates, drawn or real, and what theory says of finding them. Knows no contestant."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WORDS_A_DOCUMENT = 480
"""Some 3 kB."""
PIECE = 3000
"""Characters of a real document."""
COPIED = 1000
"""So many documents are copied, again and again."""
QUANTILES = 1 << 20


def vocabulary() -> list[str]:
    """Words of the standard library's sources, the most frequent first."""
    counts: dict[str, int] = {}
    for path in sorted(_standard_library().glob("*.py")):
        for word in re.findall(r"[A-Za-z]{2,}", path.read_text(encoding="utf-8", errors="replace")):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))


def _standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def documents(count: int, seed: int, duplicates: float = 0.1) -> Iterator[str]:
    """Texts of words by Zipf's law, of which a share copies one before it with 1 to 30 % of the words replaced."""
    rng = np.random.default_rng(seed)
    words = vocabulary()
    shares = np.cumsum(1 / np.arange(10, len(words) + 10))
    by_chance = np.searchsorted(shares / shares[-1], (np.arange(QUANTILES) + 0.5) / QUANTILES)
    recent: list[NDArray[np.int64]] = []
    for number in range(count):
        if recent and rng.random() < duplicates:
            drawn = edited(recent[int(rng.integers(len(recent)))], rng.uniform(0.01, 0.3), len(words), rng)
        else:
            drawn = by_chance[rng.integers(0, QUANTILES, WORDS_A_DOCUMENT)]
            if len(recent) < COPIED:
                recent.append(drawn)
            elif number % 100 == 0:
                recent[number // 100 % COPIED] = drawn
        yield " ".join(map(words.__getitem__, drawn.tolist()))


def real_documents(count: int, seed: int, duplicates: float = 0.1) -> Iterator[str]:
    """Pieces of the standard library's sources, of which a share copies one before it with words replaced likewise."""
    rng = np.random.default_rng(seed)
    words = np.asarray(vocabulary(), object)
    files = [path for path in sorted(_standard_library().rglob("*.py")) if "site-packages" not in path.parts]
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    pieces = (source[begin : begin + PIECE] for source in sources for begin in range(0, len(source), PIECE))
    recent: list[list[str]] = []
    for number in range(count):
        if recent and rng.random() < duplicates:
            copied, rate = recent[int(rng.integers(len(recent)))], rng.uniform(0.01, 0.3)
            replaced = rng.choice(words, len(copied))
            chosen = rng.random(len(copied)) < rate
            yield "".join(new if change and old.strip() else old
                          for old, new, change in zip(copied, replaced, chosen.tolist(), strict=True))  # fmt: skip
        elif (piece := next(pieces, None)) is not None:
            if len(recent) < COPIED or number % 100 == 0:
                recent = [*recent[1 - COPIED :], re.findall(r"\s+|\S+", piece)]
            yield piece


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
