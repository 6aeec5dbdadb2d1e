"""Runs of text that occurred before, word for word, and the texts without them (Lee et al. 2022).

A symbol is removed exactly where it lies in a run of `least` symbols or more that occurs earlier, in the same document
or in one before it, so the first occurrence of everything stays. What is found is exact: hashes only choose what is
compared. Knows neither files nor near duplicates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.data.deduplication.native import joined, operations
from lmworks.data.shuffle import mix

_BASE = 0x9E3779B97F4A7C15
_MOST_SYMBOLS = 1 << 39
_MOST_LEAST = 1 << 24


@dataclass(frozen=True)
class Spans:
    """Parts of texts, in order, apart from each other."""

    texts: NDArray[np.int64]
    """[spans] number of the text."""
    begins: NDArray[np.int64]
    """[spans] first character."""
    ends: NDArray[np.int64]
    """[spans] the character after the last."""


def repeated_substrings(texts: Sequence[str], least_bytes: int) -> Spans:
    """Parts of texts that repeat `least_bytes` bytes of UTF-8 or more of an earlier place; whole characters only.

    Args:
        texts: in the order in which the first occurrence stays.
        least_bytes: shortest repetition.

    Raises:
        DataError: `least_bytes` is out of range.
    """
    text, ends = joined(texts)
    symbols = np.frombuffer(text, np.uint8)
    spans = repeated_runs(symbols, ends, least_bytes)
    numbers = np.searchsorted(ends, spans[:, 0], side="right")
    begins = np.concatenate([[0], ends])[numbers]
    found: list[tuple[int, int, int]] = []
    for number, group in itertools.groupby(
        zip(numbers.tolist(), (spans - begins[:, None]).tolist(), strict=True), itemgetter(0)
    ):
        encoded = text[(ends[number - 1] if number else 0) : ends[number]]
        found += [(number, *cut) for cut in _whole_characters(encoded, [span for _, span in group])]
    columns = np.asarray(found, np.int64).reshape(-1, 3)
    return Spans(columns[:, 0], columns[:, 1], columns[:, 2])


def _whole_characters(encoded: bytes, spans: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Spans of bytes of UTF-8 as spans of the characters that lie wholly inside."""
    read = characters = 0
    for begin, end in spans:
        while begin < end and encoded[begin] & 0xC0 == 0x80:
            begin += 1
        while end > begin and end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1
        if begin < end:
            first = characters + len(encoded[read:begin].decode("utf-8", "surrogatepass"))
            characters = first + len(encoded[begin:end].decode("utf-8", "surrogatepass"))
            read = end
            yield first, characters


def without(texts: Sequence[str], spans: Spans) -> list[str]:
    """Texts without spans, which are in order."""
    left = list(texts)
    rows = zip(spans.texts.tolist(), spans.begins.tolist(), spans.ends.tolist(), strict=True)
    for number, cuts in itertools.groupby(rows, itemgetter(0)):
        pieces, at = [], 0
        for _, begin, end in cuts:
            pieces.append(texts[number][at:begin])
            at = end
        left[number] = "".join((*pieces, texts[number][at:]))
    return left


def repeated_runs(symbols: NDArray[np.unsignedinteger], ends: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """[spans, 2] first symbol, and the one after the last, of what repeats at least `least` symbols of before.

    One pass over the text, then work in proportion to what may repeat. Beside the text it takes some 64 bytes for every
    `least` symbols, at most three times that while the list of them grows, and, while they are compared, some 30 for
    every window of those that share their rarest k-gram.

    Args:
        symbols: [n] bytes or tokens (uint8, uint16 or uint32) of documents one after another; may be mapped.
        ends: [documents] symbols up to the end of each; no run crosses one.
        least: shortest repetition.

    Raises:
        DataError: `least` is out of range, or the symbols are of another kind.
    """
    if not 1 <= least < _MOST_LEAST:
        raise DataError(f"{least} symbols are no shortest repetition", f"Give one from 1 to {_MOST_LEAST - 1}")
    if symbols.dtype not in (np.uint8, np.uint16, np.uint32) or len(symbols) >= _MOST_SYMBOLS:
        raise DataError(
            f"{len(symbols)} symbols of type {symbols.dtype} cannot be searched", "Give uint8, uint16 or uint32"
        )
    native = operations()
    symbols, ends = np.ascontiguousarray(symbols), np.ascontiguousarray(ends, np.int64)
    if native is None:
        return repeated_runs_reference(symbols, ends, least)
    marks = np.zeros(-(-len(symbols) // 8), np.uint8)
    native.lm_repeated_windows(
        symbols.ctypes.data, symbols.itemsize, ends.ctypes.data, len(ends), least, marks.ctypes.data
    )
    arguments = (marks.ctypes.data, ends.ctypes.data, len(ends), least)
    spans = np.empty((native.lm_covered_spans(*arguments, None), 2), np.int64)
    native.lm_covered_spans(*arguments, spans.ctypes.data)
    return spans


def repeated_runs_reference(
    symbols: NDArray[np.unsignedinteger], ends: NDArray[np.int64], least: int
) -> NDArray[np.int64]:
    """What `repeated_runs` computes, from the hash of every window; takes some fifty bytes a symbol."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    windows = np.concatenate(
        [np.arange(begin, end - least + 1) for begin, end in zip(starts, ends, strict=True)] or [np.empty(0)]
    ).astype(np.int64)
    hashes = np.zeros(len(windows), np.uint64)
    for offset in range(least):
        hashes = hashes * np.uint64(_BASE) + symbols[windows + offset]
    order = np.argsort(mix(hashes), kind="stable")
    begins = np.concatenate([[0], np.flatnonzero(np.diff(hashes[order])) + 1, [len(order)]])
    repeated = []
    for begin, end in itertools.pairwise(begins.tolist()):
        seen: set[bytes] = set()
        for window in windows[order[begin:end]].tolist() if end - begin > 1 else ():
            content = symbols[window : window + least].tobytes()
            if content in seen:
                repeated.append(window)
            seen.add(content)
    found = np.sort(np.asarray(repeated, np.int64))
    owners = np.searchsorted(ends, found, side="right")
    apart = (np.diff(found) > least) | (np.diff(owners) > 0)
    first = np.concatenate([np.ones(min(len(found), 1), np.bool_), apart])
    last = np.concatenate([apart, np.ones(min(len(found), 1), np.bool_)])
    return np.stack([found[first], found[last] + least], axis=1)
