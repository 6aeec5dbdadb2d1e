"""8-bit linear maps: products of the rounded numbers, rounding as large as derived, nothing lost that is not finite."""

import math

import pytest
import torch
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels import float8_linear as kernel
from lmworks.kernels.float8_linear import float8_linear, float8_linear_reference, require_float8, to_float8

BFLOAT16 = 2.0**-8
"""More than what rounding a sum to bfloat16 changes of it."""
E4M3, E5M2 = (2.0**-bits / math.sqrt(12) / math.sqrt(1.5 / math.log(2)) for bits in (3, 2))
"""Rounding errors are even over a step of 2^-bits; over them the mantissa's root mean square, of even logarithms."""


def both(x_shape, outputs, dtype=torch.bfloat16, bias=False, seed=0, function=float8_linear):
    """Output and gradients of random operands, of very different sizes."""
    torch.manual_seed(seed)
    x = (torch.randn(x_shape) * 300).to(dtype).requires_grad_()
    weight = (torch.randn(outputs, x_shape[-1]) * 1e-3).to(dtype).requires_grad_()
    added = [torch.randn(outputs).to(dtype).requires_grad_()] if bias else []
    y = function(x, weight, *added)
    y.backward((torch.randn(y.shape) * 1e-7).to(dtype))
    return [y.detach(), *(t.grad for t in (x, weight, *added))]


@pytest.mark.parametrize(
    ("shape", "outputs"), [((32, 48), 16), ((7, 16), 80), ((1, 16), 16), ((2, 3, 32), 16), ((0, 32), 16)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_product_of_the_rounded_numbers(shape, outputs, dtype, bias):
    fast, slow = (both(shape, outputs, dtype, bias, function=f) for f in (float8_linear, float8_linear_reference))
    for ours, expected in zip(fast, slow, strict=True):
        assert ours.shape == expected.shape
        assert ours.dtype == expected.dtype == dtype
        size = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(ours, expected, rtol=BFLOAT16, atol=1e-5 * size)


def test_rounding_is_as_large_as_its_types_have_it():
    """Errors of the two factors of a product are independent, so their squares add."""
    exact, rounded = (both((512, 256), 384, torch.float32, function=f) for f in (F.linear, float8_linear))
    gap = [float((a - b).norm() / a.norm()) for a, b in zip(exact, rounded, strict=True)]
    expected = [math.hypot(E4M3, E4M3), math.hypot(E4M3, E5M2), math.hypot(E4M3, E5M2)]
    assert gap == pytest.approx(expected, rel=0.1)


def test_a_number_is_rounded_alike_beside_larger_ones():
    torch.manual_seed(0)
    few = torch.randn(64, dtype=torch.bfloat16)
    few = few[few.abs() > 0.01]
    alone, beside = (to_float8(x, torch.float8_e4m3fn) for x in (few, torch.cat([few, torch.tensor([117.0])])))
    assert torch.equal(alone[0].float() * alone[1], (beside[0].float() * beside[1])[:-1])
    assert float(alone[1]) != float(beside[1])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1.0, 3e4, 1e38])
def test_no_size_is_out_of_range(dtype, size):
    values, scale = to_float8(torch.tensor([size, -size / 3]), dtype)
    assert values.float().isfinite().all()
    assert scale.isfinite()
    if size > 1e-30:
        found = values.float() * scale
        assert found.tolist() == pytest.approx([size, -size / 3], rel=2.0**-3)
        assert float(values.float().abs().max()) > torch.finfo(dtype).max / 2.3  # the range is used


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(bad):
    x, weight = torch.randn(16, 16), torch.randn(16, 16, requires_grad=True)
    x[3, 5] = bad
    assert float8_linear(x, weight).isnan().all()
    x[3, 5] = 0
    grad = torch.zeros(16, 16)
    grad[0, 0] = bad
    float8_linear(x, weight).backward(grad)
    assert weight.grad.isnan().all()


def test_a_device_without_8_bit_products_is_refused(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0\nmore")

    monkeypatch.setattr(kernel.torch, "_scaled_mm", missing)
    require_float8.cache_clear()
    with pytest.raises(ConfigError, match=r"which cpu does not: torch\._scaled_mm is only supported"):
        require_float8(torch.device("cpu"))
    monkeypatch.undo()
    require_float8(torch.device("cpu"))
