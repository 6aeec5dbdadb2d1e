"""Causal attention inside documents of a packed batch, for training in bfloat16 on CPU.

Its oracle is `varlen_attention_reference`. Nothing of the size of the scores is kept: the backward pass computes them
again from the logarithms of their sums (FlashAttention, arXiv:2205.14135). Knows no dispatch
(`kernels/attention.py` decides).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmworks.kernels import training_operations  # noqa: F401 - registers the operations
from lmworks.kernels.native.training import trains_natively

WIDTH_STEP = 32
"""Head sizes that the operation takes are multiples of this."""


def attends_natively(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the operation takes these."""
    return (
        query.shape[-1] == value.shape[-1] and query.shape[-1] % WIDTH_STEP == 0 and trains_natively(query, key, value)
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Causal attention inside each document; scores are float32, weights bfloat16, sums float32.

    Args:
        query: [N, H, D] bfloat16.
        key: [N, K, D].
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
        scale: multiplies the scores.

    Returns:
        [N, H, D].
    """
    result: Tensor = _CausalAttention.apply(query, key, value, cu_seqlens, scale)  # type: ignore[no-untyped-call]
    return result


class _CausalAttention(torch.autograd.Function):
    """Joins the operation and its gradient."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
        out, log_sums = torch.ops.lmworks.causal_attention(query, key, value, cu_seqlens, scale)
        ctx.save_for_backward(query, key, value, out, log_sums, cu_seqlens)
        ctx.scale = scale
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sums, cu_seqlens = ctx.saved_tensors
        gradient = torch.ops.lmworks.causal_attention_backward
        return (*gradient(grad, query, key, value, out, log_sums, cu_seqlens, ctx.scale), None, None)
