"""int8 linear maps: rounding is to nearest, packing is compressed-tensors' and invertible."""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmworks.nn.quantized import QuantizedLinear, pack_int8, quantize_rows, unpack_int8


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 21))
def test_packing_is_theirs_and_inverts(rows, columns):
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    packed = pack_int8(weight)
    assert torch.equal(packed, pack_to_int32(weight, 8))
    assert torch.equal(unpack_int8(packed, columns), weight)


def test_error_is_at_most_half_a_step():
    weight = torch.randn(16, 64) * torch.logspace(-6, 3, 16)[:, None]
    values, scale = quantize_rows(weight, torch.float32)
    assert values.abs().max() == 127
    assert torch.all((weight - values * scale).abs() <= scale / 2 * 1.0001)


def test_a_narrow_scale_is_rounded_before_the_weights():
    weight = torch.randn(64, 256)
    values, scale = quantize_rows(weight, torch.bfloat16)
    assert scale.dtype == torch.bfloat16
    error = weight - values * scale.float()
    clipped = values.abs() == 127
    assert torch.all(error[~clipped].abs() <= (scale.float() / 2 * 1.0001).expand_as(weight)[~clipped])
    assert error.mean().abs() < 1e-4


def test_rows_without_any_weight_stay_zero():
    values, scale = quantize_rows(torch.zeros(2, 4), torch.bfloat16)
    assert torch.equal(values * scale, torch.zeros(2, 4))
    tiny = torch.full((1, 4), 1e-39)
    values, scale = quantize_rows(tiny, torch.float32)
    assert torch.isfinite(values * scale).all()


def test_from_linear_keeps_bias_and_values():
    linear = nn.Linear(12, 7)
    quantized = QuantizedLinear.from_linear(linear)
    x = torch.randn(3, 12)
    expected = nn.functional.linear(x, quantized.dequantized(), linear.bias)
    torch.testing.assert_close(quantized(x), expected)
    assert (quantized(x) - linear(x)).abs().max() < 0.05
    assert "int8" in repr(quantized)


def test_casting_leaves_the_weights_int8():
    quantized = QuantizedLinear.from_linear(nn.Linear(8, 8)).to(torch.bfloat16)
    assert quantized.weight.dtype == torch.int8
    assert quantized.weight_scale.dtype == torch.bfloat16
    assert [n for n, _ in quantized.named_parameters()] == ["bias"]
