"""RMSNorm against the formula and against torch's: values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from lmworks.kernels.rms_norm import rms_norm, rms_norm_reference


def case(shape: tuple[int, ...], dtype: torch.dtype, weight_dtype: torch.dtype):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=g) * 3).to(dtype).requires_grad_()
    weight = (1 + 0.3 * torch.randn(shape[-1], generator=g)).to(weight_dtype).requires_grad_()
    return x, weight, torch.randn(shape, generator=g)


@pytest.mark.parametrize("shape", [(1, 4), (33, 16), (5, 3, 8), (0, 8)])
def test_values_and_gradients_equal_the_formula(shape: tuple[int, ...]):
    x, weight, grad = case(shape, torch.float32, torch.float32)
    expected = rms_norm_reference(x, weight, 1e-5)
    found = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, F.rms_norm(x, shape[-1:], weight, 1e-5), rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(expected, (x, weight), grad)
    for mine, theirs in zip(torch.autograd.grad(found, (x, weight), grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_keeps_the_promoted_type_and_stays_near(weight_dtype: torch.dtype):
    x, weight, grad = case((64, 128), torch.bfloat16, weight_dtype)
    wide = [t.detach().float().requires_grad_() for t in (x, weight)]
    expected = rms_norm_reference(wide[0], wide[1], 1e-5)
    found = rms_norm(x, weight, 1e-5)
    assert found.dtype == rms_norm_reference(x, weight, 1e-5).dtype
    assert torch.equal(found, rms_norm_reference(x, weight, 1e-5))
    wanted = torch.autograd.grad(expected, wide, grad)
    for mine, theirs, like in zip(
        torch.autograd.grad(found, (x, weight), grad.to(found.dtype)), wanted, (x, weight), strict=True
    ):
        assert mine.dtype == like.dtype
        assert (mine.float() - theirs).norm() / theirs.norm() < 1e-2


def test_inputs_are_left_alone_and_a_frozen_weight_gets_no_gradient():
    x, weight, grad = case((9, 8), torch.float32, torch.float32)
    before = x.detach().clone()
    weight.requires_grad_(False)
    rms_norm(x, weight, 1e-5).backward(grad)
    assert torch.equal(x, before)
    assert weight.grad is None
    assert x.grad is not None
