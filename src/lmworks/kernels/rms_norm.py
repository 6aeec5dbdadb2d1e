"""Root-mean-square normalization with its own backward pass: a fifth of the passes over memory that autograd makes.

The mean square is taken in float32 whatever the input type, as in Llama. Knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lmworks.kernels import training_operations  # noqa: F401 - registers the operations
from lmworks.kernels.native.training import trains_natively
from lmworks.kernels.triton import launching


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula, x / rms(x) · weight, as it is written (arXiv:1910.07467); the oracle. Shapes as in `rms_norm`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each vector to root mean square 1, then by `weight`.

    Args:
        x: [..., E] of any floating type.
        weight: [E].
        eps: added to the mean square.

    Returns:
        [..., E] in the type that `x` and `weight` promote to.
    """
    if launching.fuses(x):
        from lmworks.kernels.triton.rms_norm import rms_norm as fused

        return fused(x, weight, eps)
    if not torch.is_grad_enabled():  # serving: nothing to keep for a backward pass, and fewer operations
        return weight * F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)
    function = _NativeRMSNorm if trains_natively(x, weight) else _RMSNorm
    result: Tensor = function.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _NativeRMSNorm(torch.autograd.Function):
    """One pass over memory forward and one backward, in bfloat16 on CPU; keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, inverse = torch.ops.lmworks.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*torch.ops.lmworks.rms_norm_backward(grad, *ctx.saved_tensors), None)


class _RMSNorm(torch.autograd.Function):
    """With n = x/r and r = rms(x): dx = (g·w - n · mean(g·w·n)) / r, dw = Σ g·n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = wide.mul_(inverse).to(x.dtype)
        ctx.save_for_backward(normed, weight, inverse)
        return weight * normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, weight, inverse = ctx.saved_tensors
        product = grad * normed
        size = normed.shape[-1]
        d_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        mean = (product @ weight.to(product.dtype)).div_(-size).unsqueeze(-1)
        d_x = (grad * weight).addcmul_(normed, mean).mul_(inverse).to(normed.dtype)
        return d_x, d_weight, None
