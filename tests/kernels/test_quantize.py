"""Rounding weights natively gives the formula's bits."""

from __future__ import annotations

import pytest
import torch

from lmworks.kernels import quantize
from lmworks.kernels.native.library import library
from lmworks.nn import quantized_grid
from lmworks.nn.quantized_grid import quantize_groups

pytestmark = pytest.mark.skipif(library() is None, reason="the machine has no compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group_size", [0, 32, 96])
@pytest.mark.parametrize("columns", [200, 1, 600])
def test_bits_of_the_formula(monkeypatch, dtype, scale_dtype, group_size, columns):
    weight = torch.randn(70, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)
    weight[3] = 0
    weight[5] *= 1e-6
    weight[7] *= 1e4
    weight[9, 0] = 127.5
    native = quantize_groups(weight, 8, group_size, scale_dtype=scale_dtype)
    assert quantize.quantize_int8(weight, group_size, scale_dtype) is not None
    monkeypatch.setattr(quantized_grid, "quantize_int8", lambda *_: None)
    formula = quantize_groups(weight, 8, group_size, scale_dtype=scale_dtype)
    assert torch.equal(native.scale, formula.scale)
    assert torch.equal(native.values, formula.values)
