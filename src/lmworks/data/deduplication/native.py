"""The native part of deduplication, and the tables of letters it reads; numpy takes its place where it cannot be had.

Knows no duplicates.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.text_measures import CJK_RANGES
from lmworks.kernels.native.library import library

TABLED = 0x40000
"""Code points from here on are no letters and fold to themselves."""
OTHER, WORD, ALONE, SPACE = 0, 1, 2, 4
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphen, zero-width space, word joiner, byte order mark: no reader sees whether they are there."""
SOURCES = ("minhash.cpp", "substrings.cpp", "words.cpp")
"""What is compiled, named so that a corpus is made anew when one of them changes: see `core.code_version`."""
_SIGNATURES = {
    "lm_word_hashes": ((*(c_void_p,) * 2, *(c_int64,) * 2, *(c_void_p,) * 5), c_int64),
    "lm_fold": ((*(c_void_p,) * 2, c_int64, *(c_void_p,) * 5), None),
    "lm_minhash": ((*(c_void_p,) * 3, *(c_int64,) * 2, *(c_void_p,) * 2, *(c_int64,) * 2, c_void_p), None),
    "lm_repeated_windows": ((c_void_p, c_int64, c_void_p, *(c_int64,) * 2, c_void_p), None),
    "lm_covered_spans": ((*(c_void_p,) * 2, *(c_int64,) * 2, c_void_p), c_int64),
}


def folded(text: str) -> str:
    """A text as it is compared: without case and without what cannot be seen."""
    return text.translate(_INVISIBLE).casefold()


@cache
def operations() -> ctypes.CDLL | None:
    """The operations, with their signatures declared; None where they cannot be had."""
    loaded = library("deduplication", Path(__file__).parent)
    if loaded is not None:
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, result
    return loaded


@dataclass(frozen=True)
class Letters:
    """What Python says of every code point below `TABLED`."""

    classes: NDArray[np.uint8]
    """`WORD` where `\\w` matches, `ALONE` for characters that are words of their own, `SPACE`, or `OTHER`."""
    fold: NDArray[np.int32]
    """The one code point it folds to, or -1 - its row in `expansions`."""
    expansions: NDArray[np.int32]
    """[rows, 3], zeros after the last; a row of zeros is what cannot be seen."""

    @property
    def addresses(self) -> tuple[int, int, int]:
        """As the operations take them."""
        return self.classes.ctypes.data, self.fold.ctypes.data, self.expansions.ctypes.data


@cache
def letters() -> Letters:
    """Made once in a process, in some hundredths of a second."""
    points = "".join(map(chr, range(TABLED)))
    classes = np.zeros(TABLED, np.uint8)
    for pattern, kind in ((r"\w+", WORD), (r"\s+", SPACE), (f"[{CJK_RANGES}]+", ALONE)):
        for match in re.finditer(pattern, points):
            classes[match.start() : match.end()] = kind
    fold = np.arange(TABLED, dtype=np.int32)
    rows: list[list[int]] = []
    for point, character in enumerate(points):
        to = "" if point in _INVISIBLE else character.casefold()
        if to != character:
            if len(to) == 1:
                fold[point] = ord(to)
            else:
                fold[point] = -1 - len(rows)
                rows.append([*map(ord, to), *(0,) * (3 - len(to))])
    return Letters(classes, fold, np.asarray(rows, np.int32))


def joined(texts: Sequence[str]) -> tuple[bytes, NDArray[np.int64]]:
    """UTF-8 of texts one after another, and [texts] the bytes up to the end of each; lone surrogates pass."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join(encoded), np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
