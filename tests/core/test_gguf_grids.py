"""Blocks read as integers are the numbers that the `gguf` package decodes."""

import gguf
import numpy as np
import pytest

from lmworks.core.gguf_blocks import FORMATS
from lmworks.core.gguf_grids import GRIDS

HALVES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
"""Where a block has its float16 numbers."""


def blocks(name, count=40):
    """Random blocks whose scales and offsets are ordinary numbers, zero, tiny or negative."""
    form = next(f for f in FORMATS.values() if f.name == name)
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (count, form.size), dtype=np.uint8)
    for at in HALVES[name]:
        numbers = generator.normal(size=count).astype(np.float16)
        numbers[:6] = [0, 0, 6e-8, -1, 1, 100]
        raw[:, at : at + 2] = numbers.view(np.uint8).reshape(count, 2)[generator.permutation(count)]
    raw[0, [b for at in HALVES[name] for b in (at, at + 1)]] = 0  # all of them at once
    return raw


@pytest.mark.parametrize("name", GRIDS)
def test_integers_scales_and_zeros_make_the_decoded_numbers(name):
    raw, grid = blocks(name), GRIDS[name]
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    values, scale, zero = grid.split(raw)
    assert values.dtype == (np.uint8 if grid.bits == 4 else np.int8)
    assert values.shape == (expected.size // grid.group_size, grid.group_size)
    assert scale.shape == (len(values),)
    assert (zero is not None) == grid.has_zero
    assert grid.bits == 8 or values.max() <= 15
    middle = zero[:, None] if zero is not None else (8 if grid.bits == 4 else 0)
    made = ((values.astype(np.float32) - middle) * scale[:, None]).reshape(expected.shape)
    largest = np.abs(expected).reshape(len(values), -1).max(axis=1).repeat(grid.group_size).reshape(expected.shape)
    assert np.isfinite(made).all()
    assert (np.abs(made - expected) <= 1e-6 * largest).all()
