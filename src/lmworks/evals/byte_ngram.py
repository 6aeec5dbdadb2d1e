"""An order-n byte model: the strong classical baseline a neural model must beat on the same text.

Interpolated modified Kneser-Ney (Chen & Goodman 1998) over 256 byte values with a context of `order` bytes.
Every order k keeps its grams as sorted 64-bit integers, nine bits a symbol, so training is one sort and scoring
is binary search: 12 MB trains in seconds on one core. Knows no tokens and no neural model.

How a document is seen: alone. Its first byte has `order` start symbols for context, as our models see only a
begin-of-document token. The start symbol is never predicted, nor is the end: no probability is spent on either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.kneser_ney import Counts, Grams, Level, estimate_discounts, level, run_starts

START = 256
"""Symbol before a document's first byte; appears in contexts only."""
BITS = 9
"""Bits per symbol in a packed gram: 257 symbols."""
MAX_ORDER = 6
"""Seven symbols of nine bits fill 63 bits."""


class ByteNgramModel:
    """p(byte | up to `order` bytes before it), trained once and then fixed.

    Args:
        documents: training text, each document on its own.
        order: bytes of context, 0 to 6.

    Raises:
        ValueError: `order` is out of range, or there is no training byte.
    """

    def __init__(self, documents: Sequence[bytes], order: int = 5) -> None:
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order {order} is not between 0 and {MAX_ORDER}")
        packed = pack(documents, order)
        if len(packed) == 0:
            raise ValueError("no training byte: every document is empty")
        self.order = order
        packed.sort()
        starts = run_starts(packed)
        grams, raw = packed[starts], np.diff(np.append(starts, len(packed)))
        levels = [_level(grams, raw, order)]
        for k in range(order - 1, -1, -1):
            # Dropping the oldest symbol folds grams together: how many fold is the number of distinct left neighbors.
            lower = grams & _mask(k + 1)
            by_gram = np.argsort(lower, kind="stable")
            lower, raw = lower[by_gram], raw[by_gram]
            starts = run_starts(lower)
            grams, neighbors = lower[starts], np.diff(np.append(starts, len(lower)))
            raw = np.add.reduceat(raw, starts)
            # Only a start symbol precedes a start symbol, so grams at the head of a document keep their occurrences.
            at_head = (grams >> np.uint64(BITS * k)) == START
            levels.append(_level(grams, np.where(at_head, raw, neighbors), k))
        self._levels = levels[::-1]

    def log2_probabilities(self, documents: Sequence[bytes]) -> NDArray[np.float64]:
        """log2 p of every byte of `documents` laid end to end `[total bytes]`; contexts restart with each document."""
        return self._log2(pack(documents, self.order))

    def bits(self, documents: Sequence[bytes]) -> NDArray[np.float64]:
        """Bits to encode each document `[documents]`."""
        sizes = np.array([len(document) for document in documents], np.int64)
        ends = np.cumsum(sizes)
        running = np.concatenate([[0.0], np.cumsum(-self.log2_probabilities(documents))])
        return running[ends] - running[ends - sizes]

    def distribution(self, context: bytes) -> NDArray[np.float64]:
        """Probabilities `[256]` of the byte after `context`, the text of a document so far."""
        packed = pack([context + bytes([0])], self.order)[-1:]
        return np.exp2(self._log2(packed | np.arange(256, dtype=np.uint64)))

    def _log2(self, packed: Grams) -> NDArray[np.float64]:
        """log2 p of the last symbol of each packed gram, from order 0 up: p_k = discounted + reserved · p_(k-1)."""
        probability = np.full(len(packed), 1 / 256)
        for k, grams_of_order in enumerate(self._levels):
            grams = packed & _mask(k + 1)
            probability = grams_of_order.probabilities(grams, grams >> np.uint64(BITS), probability)
        return np.log2(probability)


def pack(documents: Sequence[bytes], order: int) -> Grams:
    """Every byte with the `order` symbols before it, packed oldest first `[total bytes]`."""
    sizes = np.array([len(document) for document in documents], np.int64)
    heads = np.cumsum(sizes + order) - sizes - order  # where each document's start symbols begin
    symbols = np.full(int(sizes.sum()) + order * len(sizes), START, np.uint16)
    is_text = np.ones(len(symbols), bool)
    is_text[(heads[:, None] + np.arange(order)).ravel()] = False
    symbols[is_text] = np.frombuffer(b"".join(documents), np.uint8)
    places = np.flatnonzero(is_text)
    packed = np.zeros(len(places), np.uint64)
    for back in range(order, -1, -1):
        packed = (packed << np.uint64(BITS)) | symbols[places - back].astype(np.uint64)
    return packed


def _level(grams: Grams, counts: Counts, order: int) -> Level:
    # Order 0 has at most 256 grams: their count statistics say nothing, and a tiny discount suffices for unseen bytes.
    discounts = estimate_discounts(counts) if order else np.array([0.0, 0.5, 0.5, 0.5])
    return level(grams, counts, grams >> np.uint64(BITS), discounts)


def _mask(symbols: int) -> np.uint64:
    return np.uint64((1 << (BITS * symbols)) - 1)
