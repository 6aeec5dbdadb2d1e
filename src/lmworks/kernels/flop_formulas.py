"""What attention multiplies where torch's `FlopCounterMode` does not know: importing this registers it.

That is the package's operation of training, and torch's fused attention on CPU. They are counted as torch counts it on
a GPU: a multiplication and an addition are two, every query of a document meets all its keys under a causal mask too,
and a backward pass that computes the scores again has five products for the forward pass's two. Kept apart from the
operations, as torch's counter takes a third of a second to import. Knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from lmworks.kernels import training_operations  # noqa: F401 - the operations


def _pairs(cu_seqlens: Tensor) -> int:
    """Queries times keys, document by document."""
    return int(cu_seqlens.diff().double().square().sum())


@register_flop_formula(torch.ops.lmworks.causal_attention, get_raw=True)
def _causal_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *_: Any, **__: Any) -> int:
    """Queries times keys and weights times values."""
    return 2 * 2 * query.shape[1] * query.shape[2] * _pairs(cu_seqlens)


@register_flop_formula(torch.ops.lmworks.causal_attention_backward, get_raw=True)
def _causal_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sums: Tensor, cu_seqlens: Tensor,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Scores again, and the gradients of weights, queries, keys and values."""
    return 5 * 2 * query.shape[1] * query.shape[2] * _pairs(cu_seqlens)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _on_cpu(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    flops: int = sdpa_flop_count(query, key, value)
    return flops


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _on_cpu_backward(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    flops: int = sdpa_backward_flop_count(grad, query, key, value)
    return flops
