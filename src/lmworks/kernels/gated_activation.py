"""The activations of feed-forward nets, and their product with a gate. Knows no module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

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
    return ACTIVATIONS[activation](gate) * up
