"""The activations of feed-forward nets, and their product with a gate. Knows no module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lmworks.kernels import training_operations  # noqa: F401 - registers the operations
from lmworks.kernels.native.training import trains_natively
from lmworks.kernels.triton import launching

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) · up (GLU variants, arXiv:2002.05202).

    Args:
        gate: any shape and floating type.
        up: as `gate`.
        activation: a name of `ACTIVATIONS`.
    """
    if launching.fuses(gate):
        from lmworks.kernels.triton.gated_activation import gated as fused

        return fused(gate, up, activation)
    if activation == "silu" and torch.is_grad_enabled() and trains_natively(gate, up):
        result: Tensor = _NativeSiluGated.apply(gate, up)  # type: ignore[no-untyped-call]
        return result
    return ACTIVATIONS[activation](gate) * up


class _NativeSiluGated(torch.autograd.Function):
    """In bfloat16 on CPU; keeps its inputs alone, and rounds once."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        result: Tensor = torch.ops.lmworks.silu_gated(gate, up)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        d_gate, d_up = torch.ops.lmworks.silu_gated_backward(grad, *ctx.saved_tensors)
        return d_gate, d_up
