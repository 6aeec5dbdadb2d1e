"""Weights on a grid: rounding is to nearest, packing is compressed-tensors' and invertible, casting keeps them."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmworks.core.errors import ConfigError
from lmworks.nn.quantized import QuantizedEmbedding, QuantizedLinear, pack_int32, quantize_groups, unpack_int32


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 21))
def test_packing_is_theirs_and_inverts(rows, columns):
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    packed = pack_int32(weight, 8)
    assert torch.equal(packed, pack_to_int32(weight, 8))
    assert torch.equal(unpack_int32(packed, columns, 8), weight)
    signed = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    nibbles = (signed + 8).to(torch.uint8)
    assert torch.equal(pack_int32(nibbles, 4), pack_to_int32(signed, 4))
    assert torch.equal(unpack_int32(pack_int32(nibbles, 4), columns, 4), nibbles)


@pytest.mark.parametrize("group_size", [0, 16, 24])
def test_error_is_at_most_half_a_step(group_size):
    weight = torch.randn(16, 64) * torch.logspace(-6, 3, 16)[:, None]
    grid = quantize_groups(weight, 8, group_size)
    assert grid.values.abs().max() == 127
    assert grid.zero is None
    step = grid.scale.repeat_interleave(group_size or 64, 1)[:, :64]
    assert torch.all((weight - grid.dequantized()).abs() <= step / 2 * 1.0001)


def test_a_narrow_scale_is_rounded_before_the_weights():
    weight = torch.randn(64, 256)
    grid = quantize_groups(weight, 8, scale_dtype=torch.bfloat16)
    assert torch.equal(grid.scale, grid.scale.bfloat16().float())
    error, clipped = weight - grid.dequantized(), grid.values.abs() == 127
    assert torch.all(error[~clipped].abs() <= (grid.scale / 2 * 1.0001).expand_as(weight)[~clipped])
    assert error.mean().abs() < 1e-4


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, True), (4, False)])
def test_groups_without_any_weight_stay_zero(bits, symmetric):
    grid = quantize_groups(torch.zeros(2, 4), bits, 2, symmetric=symmetric)
    assert torch.equal(grid.dequantized(), torch.zeros(2, 4))
    grid = quantize_groups(torch.full((1, 4), 1e-39), bits, symmetric=symmetric)
    assert torch.isfinite(grid.dequantized()).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [0, 32, 48])
def test_four_bits_lose_less_than_the_plain_formula(symmetric, group_size):
    """Against scale = range / 15 (or the largest magnitude / 7) without any search."""
    weight = torch.randn(32, 96) + (0 if symmetric else 0.7)
    grid = quantize_groups(weight, 4, group_size, symmetric=symmetric)
    assert grid.values.dtype == torch.uint8
    assert grid.values.max() == 15
    groups = weight.unflatten(1, (-1, group_size or 96))
    if symmetric:
        scale = groups.abs().amax(-1, keepdim=True) / 7
        plain = (groups / scale).round() * scale
    else:
        least, most = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
        scale = (most - least) / 15
        zero = (-least / scale).round()
        plain = ((groups / scale + zero).round().clamp(0, 15) - zero) * scale
    ours = (grid.dequantized() - weight).square().mean()
    assert ours < 0.98 * (plain - groups).square().mean()
    assert (grid.zero is None) == symmetric


def test_what_is_no_grid_is_refused():
    for bits, group_size, symmetric in ((3, 32, True), (8, 32, False), (4, -1, True)):
        with pytest.raises(ConfigError, match="are not quantized to"):
            quantize_groups(torch.ones(2, 2), bits, group_size, symmetric=symmetric)


@pytest.mark.parametrize("grid", [{}, {"bits": 4, "group_size": 5}, {"bits": 4, "group_size": 4, "symmetric": False}])
def test_from_linear_keeps_bias_and_values(grid):
    linear = nn.Linear(11, 7)
    quantized = QuantizedLinear.from_linear(linear, **grid)
    x = torch.randn(3, 11)
    expected = nn.functional.linear(x, quantized.dequantized(), linear.bias)
    torch.testing.assert_close(quantized(x), expected)
    assert (quantized(x) - linear(x)).abs().max() < (0.4 if grid else 0.05)
    assert f"int{grid.get('bits', 8)}" in repr(quantized)
    again = QuantizedLinear.from_grid(quantized.quantized_weight(), linear.bias, torch.float32)
    assert torch.equal(again(x), quantized(x))


def test_casting_leaves_the_grid_as_it_is():
    quantized = QuantizedLinear.from_linear(nn.Linear(8, 8), bits=4, group_size=4, symmetric=False)
    before = quantized.dequantized()
    quantized = quantized.to(torch.bfloat16)
    assert torch.equal(quantized.dequantized(), before)
    assert quantized(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert [(n, p.dtype) for n, p in quantized.named_parameters()] == [("bias", torch.bfloat16)]


def test_an_embedding_gives_the_rows_of_its_matrix_in_the_type_of_the_model():
    grid = quantize_groups(torch.randn(9, 12), 4, 4, symmetric=False)
    table = QuantizedEmbedding(9, 12, bits=4, group_size=4, zero=True)
    table.set_grid(grid)
    ids = torch.tensor([[3, 8], [0, 3]])
    assert torch.equal(table(ids), grid.dequantized()[ids])
    assert torch.equal(table.to(torch.bfloat16)(ids), grid.dequantized(torch.bfloat16)[ids])
