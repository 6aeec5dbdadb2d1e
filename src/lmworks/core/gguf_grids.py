"""GGML's block formats as integers with scales and zero points, for those that are such. Knows no file and no model.

A weight is (value - zero) · scale, with one scale to 16 or 32 consecutive weights. The two-level scales of the `_K`
formats are products of a float16 and six bits, or eight: exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmworks.core.gguf_blocks import Bytes, Floats, fifth_bits, half, k_scales, k_values5, k_values6, nibbles

Integers = NDArray[Any]
"""uint8 or int8."""
Split = tuple[Integers, Floats, Floats | None]
"""Values, scales, zeros."""


@dataclass(frozen=True)
class BlockGrid:
    """How one block format reads as integers."""

    bits: int
    """4: values are uint8 from 0 to 15, and 8 is zero; 8: values are int8."""
    group_size: int
    """Weights that share a scale."""
    has_zero: bool
    split: Callable[[Bytes], Split]
    """[blocks, size] bytes to values [groups, group_size], scales and zeros [groups]."""


def _q8_0(raw: Bytes) -> Split:
    return raw[:, 2:].view(np.int8), half(raw[:, :2])[:, 0], None


def _q4_0(raw: Bytes) -> Split:
    return nibbles(raw[:, 2:]), half(raw[:, :2])[:, 0], None


def _q4_1(raw: Bytes) -> Split:
    return _shifted(nibbles(raw[:, 4:]), half(raw[:, :2]), half(raw[:, 2:4]))


def _q5_0(raw: Bytes) -> Split:
    values = nibbles(raw[:, 6:]) | fifth_bits(raw[:, 2:6])
    return values.astype(np.int8) - np.int8(16), half(raw[:, :2])[:, 0], None


def _q5_1(raw: Bytes) -> Split:
    values = nibbles(raw[:, 8:]) | fifth_bits(raw[:, 4:8])
    return _shifted(values.astype(np.int8), half(raw[:, :2]), half(raw[:, 2:4]))


def _q4_k(raw: Bytes) -> Split:
    return _shifted(nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 32), *_k_header(raw))


def _q5_k(raw: Bytes) -> Split:
    return _shifted(k_values5(raw).astype(np.int8).reshape(-1, 32), *_k_header(raw))


def _q6_k(raw: Bytes) -> Split:
    scales = half(raw[:, 208:]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return k_values6(raw).astype(np.int8) - np.int8(32), scales.reshape(-1), None


def _k_header(raw: Bytes) -> tuple[Floats, Floats]:
    """Scales and offsets of the groups of 4- and 5-bit K blocks."""
    scales, minima = k_scales(raw[:, 4:16])
    return half(raw[:, :2]) * scales, -half(raw[:, 2:4]) * minima


def _shifted(values: Integers, scale: Floats, offset: Floats) -> Split:
    """From value · scale + offset; a scale of zero leaves a group of equal weights, which are 1 · offset."""
    scale, offset = scale.reshape(-1), offset.reshape(-1)
    flat = scale == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(flat, np.float32(-1), -offset / scale).astype(np.float32)
    return values * ~flat[:, None], np.where(flat, offset, scale), zero


GRIDS: dict[str, BlockGrid] = {
    "Q8_0": BlockGrid(8, 32, False, _q8_0),
    "Q4_0": BlockGrid(4, 32, False, _q4_0),
    "Q4_1": BlockGrid(4, 32, True, _q4_1),
    "Q5_0": BlockGrid(8, 32, False, _q5_0),
    "Q5_1": BlockGrid(8, 32, True, _q5_1),
    "Q4_K": BlockGrid(4, 32, True, _q4_k),
    "Q5_K": BlockGrid(8, 32, True, _q5_k),
    "Q6_K": BlockGrid(8, 16, False, _q6_k),
}
"""By the format's name."""
