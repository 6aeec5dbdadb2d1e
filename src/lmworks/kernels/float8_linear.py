"""A linear map whose products multiply 8-bit floats, for training (Micikevicius et al., 2022, arXiv:2209.05433).

Activations and weights are e4m3, gradients of the output e5m2, which trades a bit of precision for range. Each tensor
has one factor, found anew at every call from its largest number (torchao's recipe `tensorwise`), so there is no state
to keep. Factors are powers of two: multiplying by them rounds nothing, so what a number is rounded to does not depend
on what else is in its tensor unless it is below 1/16384 of the largest (a gradient: below a billionth). Sums are
float32, results the type of the input. Knows no model and no trainer.

Legend: `N` rows, `I` inputs, `O` outputs.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lmworks.core.errors import ConfigError

OPERAND = torch.float8_e4m3fn
"""Type of activations and weights: 4 bits of exponent, 3 of mantissa."""
GRADIENT = torch.float8_e5m2
"""Type of gradients of the output: 5 bits of exponent, 2 of mantissa."""
ALIGNMENT = 16
"""Sizes that a GPU's product takes are multiples of this."""


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x @ weightᵀ + bias with 8-bit products; where a tensor holds a number that is not finite, all NaN.

    Args:
        x: [..., I]; I and O are multiples of 16, or a GPU refuses them.
        weight: [O, I] in the type of `x`.
        bias: [O], added in the type of `x`.

    Returns:
        [..., O]. Differentiable once.
    """
    rows = x.reshape(-1, x.shape[-1])
    # The gradient of the weight sums over rows; rows of zeros add nothing to it.
    whole = F.pad(rows, (0, 0, 0, -len(rows) % ALIGNMENT)) if len(rows) % ALIGNMENT else rows
    y: Tensor = _Float8Linear.apply(whole, weight)  # type: ignore[no-untyped-call]  # a method of torch's without types
    y = y[: len(rows)].view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


def float8_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same with float32 products of the rounded numbers, differentiated by autograd; the oracle."""
    y = F.linear(_rounded(x), _rounded(weight))
    if y.requires_grad:
        y.register_hook(partial(_dequantized, dtype=GRADIENT))
    y = y.to(x.dtype)
    return y if bias is None else y + bias


def to_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round to 8 bits.

    Args:
        x: any shape.
        dtype: a type of 8-bit floats.

    Returns:
        The numbers, as large as the type allows, and the float32 factor [] that takes them back: a power of two, or NaN
        if a number of `x` is not finite, which 8 bits would hide.
    """
    largest = x.detach().abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)
    # It counts as at least 2^-100, so that no factor overflows; a number by name would be an input to `torch.compile`.
    _, exponent = torch.frexp(torch.finfo(dtype).max / largest.clamp(min=2.0**-100))
    scale = torch.ldexp(torch.ones_like(largest), exponent - 1)
    return (x * scale.to(x.dtype)).to(dtype), 1 / scale + largest * 0


@cache
def require_float8(device: torch.device) -> None:
    """Check that a device multiplies 8-bit floats.

    Raises:
        ConfigError: it does not.
    """
    try:
        one = torch.eye(ALIGNMENT, device=device)
        for dtype in (OPERAND, GRADIENT):
            _product(*to_float8(one, dtype), *to_float8(one, OPERAND), torch.bfloat16)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"precision float8 multiplies 8-bit floats, which {device} does not: {str(error).splitlines()[0]}",
            "Set `precision: bfloat16`, or take a GPU of compute capability 8.9 or higher",
        ) from None


class _Float8Linear(torch.autograd.Function):
    """The product and its two gradients; what is kept for them is 8 bits wide."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = to_float8(x, OPERAND)
        weight8, weight_scale = to_float8(weight, OPERAND)
        ctx.save_for_backward(x8, x_scale, weight8, weight_scale)
        return _product(x8, x_scale, weight8.t(), weight_scale, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8, x_scale, weight8, weight_scale = ctx.saved_tensors
        grad8, grad_scale = to_float8(grad, GRADIENT)
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            d_x = _product(grad8, grad_scale, weight8, weight_scale, grad.dtype)
        if ctx.needs_input_grad[1]:
            d_weight = _product(grad8.t(), grad_scale, x8, x_scale, grad.dtype)
        return d_x, d_weight


def _product(left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[A, B] times [B, C] times both factors -> [A, C]."""
    by_rows, by_columns = left.contiguous(), right.t().contiguous().t()  # the one layout that a GPU takes
    return torch._scaled_mm(by_rows, by_columns, scale_a=left_scale, scale_b=right_scale, out_dtype=dtype)


def _dequantized(x: Tensor, dtype: torch.dtype) -> Tensor:
    values, scale = to_float8(x, dtype)
    return values.float() * scale


def _rounded(x: Tensor) -> Tensor:
    """What 8 bits keep of an operand, in float32; its gradient passes as if nothing were rounded."""
    wide = x.float()
    return _dequantized(x.detach(), OPERAND) + (wide - wide.detach())
