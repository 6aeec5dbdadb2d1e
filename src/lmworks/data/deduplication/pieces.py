"""Lines and paragraphs that a corpus holds more than once, in one document or several. Knows no files.

`find_pieces` may run anywhere on any part of the documents; `repeated` decides over the keys of all, 8 bytes each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmworks.data.deduplication.fingerprints import exact_keys
from lmworks.data.deduplication.substrings import Spans

PieceKind = Literal["line", "paragraph"]
Copies = Literal["all", "first", "none"]
_PIECES = {"line": re.compile(r"[^\n]+\n?"), "paragraph": re.compile(r"\S(?:[^\n]|\n(?!\s*\n))*(?:\s*\n|\Z)")}


@dataclass(frozen=True)
class Pieces:
    """Parts of texts, in order."""

    keys: NDArray[np.uint64]
    """[pieces] blind to case, white space and compatibility forms; two different ones agree by a chance of 2^-64."""
    spans: Spans
    """[pieces] where they lie, with the end of the line that follows."""


def find_pieces(texts: Sequence[str], kind: PieceKind, least_characters: int = 1) -> Pieces:
    """Lines, or paragraphs apart by blank lines, that have at least so many characters without white space around."""
    found = [
        (number, match.start(), match.end(), piece)
        for number, text in enumerate(texts)
        for match in _PIECES[kind].finditer(text)
        if len(piece := match.group().strip()) >= max(least_characters, 1)
    ]
    places = np.asarray([place[:3] for place in found], np.int64).reshape(-1, 3)
    return Pieces(exact_keys([place[3] for place in found])[:, 0], Spans(places[:, 0], places[:, 1], places[:, 2]))


def repeated(keys: NDArray[np.uint64], copies: Copies, least_copies: int = 2) -> NDArray[np.bool_]:
    """[pieces] which are to be removed.

    Args:
        keys: of the pieces of all documents, in their order; may be mapped from a file.
        copies: what stays of a piece that repeats: all copies, the first, or none.
        least_copies: how often it must be there to count as repeating.
    """
    removed = np.zeros(len(keys), np.bool_)
    if copies == "all" or not len(keys):
        return removed
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    counts = np.diff(np.append(begins, len(keys)))
    removed[order] = np.repeat(counts >= least_copies, counts)
    if copies == "first":
        removed[order[begins]] = False
    return removed


def chosen(spans: Spans, which: NDArray[np.bool_]) -> Spans:
    """Some of the spans."""
    return Spans(spans.texts[which], spans.begins[which], spans.ends[which])
