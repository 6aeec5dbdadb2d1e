"""Turning the first coordinates of each head, for training in bfloat16 on CPU.

The formula is `nn.rope.Rotation`'s, which decides. Its gradient is the turn back. Knows no positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmworks.kernels import training_operations  # noqa: F401 - registers the operations


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute x · cos + across(x) · sin, where `across` turns the halves (a, b) of R coordinates to (-b, a).

    Args:
        x: [N, H, D] bfloat16.
        cos: [N, 1, R] bfloat16, both halves alike; R even. Not differentiated.
        sin: as `cos`.
    """
    result: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return result


class _Rotate(torch.autograd.Function):
    """Joins the operation and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        result: Tensor = torch.ops.lmworks.rotate(x, cos, sin, 1.0)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.lmworks.rotate(grad, *ctx.saved_tensors, -1.0), None, None
