"""Grouped products against the loop under autograd: values, both gradients, ragged and empty groups."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmworks.kernels.grouped_matmul import choose_method, grouped_matmul, grouped_matmul_reference


def case(sizes: list[int], width: int, out: int, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), width, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(len(sizes), out, width, generator=g).to(dtype).requires_grad_()
    return x, weight, torch.tensor(sizes), torch.randn(sum(sizes), out, generator=g).to(dtype)


@pytest.mark.parametrize("method", ["loop", "torch"])
@pytest.mark.parametrize("sizes", [[3, 0, 5, 1], [0, 0, 7], [1], [2, 2, 0, 0]])
def test_values_and_gradients_equal_the_loop(sizes: list[int], method: str):
    x, weight, group_sizes, grad = case(sizes, 16, 8)
    expected = grouped_matmul_reference(x, weight, group_sizes)
    found = grouped_matmul(x, weight, group_sizes, method=method)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, (x, weight), grad)
    torch.testing.assert_close(torch.autograd.grad(found, (x, weight), grad), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "out"), [(7, 3), (1, 1)])
def test_the_chosen_path_takes_any_shape(width: int, out: int):
    x, weight, group_sizes, grad = case([2, 0, 4], width, out, torch.float64)
    assert choose_method(x, weight) == "loop"
    assert torch.autograd.gradcheck(lambda x, w: grouped_matmul(x, w, group_sizes), (x, weight))
    x, weight, group_sizes, grad = case([0, 0], width, out)
    found = grouped_matmul(x, weight, group_sizes)
    assert found.shape == (0, out)
    d_weight = torch.autograd.grad(found, weight, grad)[0]
    assert torch.equal(d_weight, torch.zeros_like(weight))


def test_the_gradient_of_a_sum_and_of_frozen_weights():
    x, weight, group_sizes, _ = case([2, 3], 8, 8)
    for method in ("loop", "torch"):
        (d_x,) = torch.autograd.grad(grouped_matmul(x, weight.detach(), group_sizes, method=method).sum(), x)
        (wanted,) = torch.autograd.grad(grouped_matmul_reference(x, weight, group_sizes).sum(), x)
        torch.testing.assert_close(d_x, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["loop", "torch"])
def test_bfloat16_is_rounded_once(method: str):
    x, weight, group_sizes, _ = case([3, 0, 9], 64, 32, torch.bfloat16)
    found = grouped_matmul(x, weight, group_sizes, method=method)
    wide = grouped_matmul_reference(x.float(), weight.float(), group_sizes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wide, rtol=2**-8, atol=2**-6)


def test_flops_are_counted_for_used_groups_only():
    x, weight, group_sizes, grad = case([4, 0, 2], 8, 5)
    with FlopCounterMode(display=False) as counter:
        grouped_matmul(x, weight, group_sizes).backward(grad)
    assert counter.get_total_flops() == 3 * 2 * 6 * 8 * 5


@pytest.mark.gpu
def test_on_cuda_torchs_kernel_is_chosen_and_equals_the_loop():
    x, weight, group_sizes, grad = (t.detach().cuda() for t in case([3, 0, 130, 1], 64, 32, torch.bfloat16))
    inputs = x.requires_grad_(), weight.requires_grad_()
    assert choose_method(*inputs) == "torch"
    found, expected = grouped_matmul(*inputs, group_sizes), grouped_matmul_reference(*inputs, group_sizes)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-5)
    wanted = torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, grad), wanted, rtol=2**-7, atol=2**-4)
