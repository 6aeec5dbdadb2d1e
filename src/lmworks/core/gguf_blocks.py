"""From GGML's block formats to float32, and for the formats we write back again, in numpy. Knows no file and no model.

A block is a run of 32 or 256 weights that share a scale (and, in the `_1` and `_K` formats, a minimum).
Layouts follow the GGML reference, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockFormat:
    """One GGML tensor type."""

    name: str
    weights: int
    """Weights per block."""
    size: int
    """Bytes per block."""
    decode: Callable[[Bytes], Floats]
    """[blocks, size] bytes to [blocks, weights]."""
    encode: Callable[[Floats], Bytes] | None = None
    """The inverse, rounding to nearest; None for formats that are only read."""


def half(raw: Bytes) -> Floats:
    """[B, 2] bytes holding one float16 each -> [B, 1]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def nibbles(raw: Bytes) -> Bytes:
    """[B, n] bytes -> [B, 2n]: all low nibbles, then all high nibbles."""
    return np.concatenate([raw & 0x0F, raw >> 4], axis=-1)


def fifth_bits(raw: Bytes) -> Bytes:
    """[B, 4] bytes of little-endian bit flags -> [B, 32] values of 0 or 16."""
    return np.unpackbits(raw, axis=-1, bitorder="little") * np.uint8(16)


def _f32(raw: Bytes) -> Floats:
    return raw.copy().view(np.float32)  # not a view: the bytes belong to a file


def _f16(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _bf16(raw: Bytes) -> Floats:
    return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * (nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: Bytes) -> Floats:
    return half(raw[:, :2]) * nibbles(raw[:, 4:]).astype(np.float32) + half(raw[:, 2:4])


def _q5_0(raw: Bytes) -> Floats:
    values = nibbles(raw[:, 6:]) | fifth_bits(raw[:, 2:6])
    return half(raw[:, :2]) * (values.astype(np.float32) - 16)


def _q5_1(raw: Bytes) -> Floats:
    values = nibbles(raw[:, 8:]) | fifth_bits(raw[:, 4:8])
    return half(raw[:, :2]) * values.astype(np.float32) + half(raw[:, 2:4])


def k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """[B, 12] packed 6-bit numbers -> scales and minima, [B, 8] each."""
    first, middle, last = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([first & 63, (last & 0x0F) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (last >> 4) | ((middle >> 6) << 4)], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_decode(raw: Bytes, values: Bytes) -> Floats:
    """Scale and shift [B, 8, 32] integers by the header of a 4- or 5-bit K block."""
    scales, minima = k_scales(raw[:, 4:16])
    scales, minima = half(raw[:, :2]) * scales, half(raw[:, 2:4]) * minima
    return (scales[:, :, None] * values.astype(np.float32) - minima[:, :, None]).reshape(len(raw), 256)


def _quarters(raw: Bytes) -> Bytes:
    """[B, 64] bytes of four 2-bit numbers -> [B, 16, 16], a row for each scale of a 2- or 3-bit K block."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    return ((raw.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 16, 16)


def _q2_k(raw: Bytes) -> Floats:
    scales = half(raw[:, 80:82]) * (raw[:, :16] & 0x0F).astype(np.float32)
    minima = half(raw[:, 82:]) * (raw[:, :16] >> 4).astype(np.float32)
    values = _quarters(raw[:, 16:80]).astype(np.float32)
    return (scales[:, :, None] * values - minima[:, :, None]).reshape(len(raw), 256)


def _q3_k(raw: Bytes) -> Floats:
    packed = raw[:, 96:108]
    high = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], dtype=np.uint8)[None, :, None]) & 3
    scales = (nibbles(packed[:, :8]) | (high.reshape(-1, 16) << 4)).astype(np.float32) - 32
    planes = np.arange(8, dtype=np.uint8)[None, :, None]
    third = (raw[:, None, :32] >> planes).reshape(-1, 16, 16) & 1
    values = (_quarters(raw[:, 32:96]) | (third << 2)).astype(np.float32) - 4
    return ((half(raw[:, 108:]) * scales)[:, :, None] * values).reshape(len(raw), 256)


def _q4_k(raw: Bytes) -> Floats:
    return _k_decode(raw, nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def k_values5(raw: Bytes) -> Bytes:
    """5-bit K blocks -> [B, 8, 32] integers."""
    low = nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    planes = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (raw[:, None, 16:48] >> planes) & np.uint8(1)
    return low | (high * np.uint8(16))


def _q5_k(raw: Bytes) -> Floats:
    return _k_decode(raw, k_values5(raw))


def k_values6(raw: Bytes) -> Bytes:
    """6-bit K blocks -> [16 B, 16] integers; 32 is zero."""
    low = nibbles(raw[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    high = (raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    return (low | (high << np.uint8(4))).reshape(-1, 16)


def _q6_k(raw: Bytes) -> Floats:
    values = k_values6(raw).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = half(raw[:, 208:]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * values).reshape(len(raw), 256)


def _to_f32(values: Floats) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8)


def _to_f16(values: Floats) -> Bytes:
    with np.errstate(over="ignore"):  # what exceeds float16 becomes infinite
        return values.astype(np.float16).view(np.uint8)


def _to_bf16(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    # To nearest, ties to even; in a NaN the sum could run over, so only its quiet bit is set.
    rounded = np.where(np.isnan(values), bits | 0x400000, bits + (0x7FFF + ((bits >> 16) & 1)))
    return (rounded >> 16).astype(np.uint16).view(np.uint8)


def _to_q8_0(values: Floats) -> Bytes:
    scale = np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale).astype(np.float32)
    steps = values * inverse
    whole = np.trunc(steps)
    whole += np.where(np.abs(steps - whole) >= 0.5, np.sign(steps), 0)  # halves away from zero, as C's roundf
    return np.concatenate([scale.astype(np.float16).view(np.uint8), whole.astype(np.int8).view(np.uint8)], axis=-1)


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, _f32, _to_f32),
    1: BlockFormat("F16", 1, 2, _f16, _to_f16),
    30: BlockFormat("BF16", 1, 2, _bf16, _to_bf16),
    8: BlockFormat("Q8_0", 32, 34, _q8_0, _to_q8_0),
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    10: BlockFormat("Q2_K", 256, 84, _q2_k),
    11: BlockFormat("Q3_K", 256, 110, _q3_k),
    12: BlockFormat("Q4_K", 256, 144, _q4_k),
    13: BlockFormat("Q5_K", 256, 176, _q5_k),
    14: BlockFormat("Q6_K", 256, 210, _q6_k),
}
"""GGML type number to its format."""

OTHER_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""GGML types that are not read, by number, so that an error can name them."""
