"""Matrix products over ragged groups of rows, each group with its own weight: the formula, and two fast ways.

`loop` calls one product per group that has rows and writes into the result. `torch` is torch's own
`grouped_mm`, one kernel that never asks the host for the sizes; it takes no rows that are not multiples of
16 bytes and no float64. Knows no router and no expert.

The rule: `torch` on CUDA in bfloat16 where the shapes allow it, `loop` everywhere else. One CPU core
(AVX-512, torch 2.13), forward and backward, microseconds:

    groups × [out, in], rows      float32: plain autograd   loop   torch   bfloat16: loop   torch
    8 × [1024, 512], 1024                           45267  42282   46434            19323   19175
    64 × [512, 1024], 512                          183550 126103  135431            64490   59053
    64 × [512, 1024], 2048                         243122 156396  155535            84468   81716
    64 × [128, 64], 64                               1708    982     532             2526    1955

On CPU the two differ only where the matrices are toys, and `loop` takes every shape and type and its products
are seen by `FlopCounterMode`. Gathering a weight per row is slower than both except in bfloat16 on such toys
(8 rows, 64 × [512, 1024], forward only: `loop` 956, `torch` 849, gathered 6676).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GroupedMatmulMethod = Literal["loop", "torch"]

ALIGNMENT = 16
"""torch's kernel reads rows in runs of this many bytes."""

logger = logging.getLogger(__name__)


def grouped_matmul_reference(x: Tensor, weight: Tensor, group_sizes: Tensor) -> Tensor:
    """Every group by itself, differentiated by autograd; the oracle. Shapes as in `grouped_matmul`."""
    groups = torch.split(x, group_sizes.tolist())
    return torch.cat([F.linear(rows, own) for rows, own in zip(groups, weight, strict=True)])


def grouped_matmul(
    x: Tensor, weight: Tensor, group_sizes: Tensor, *, method: GroupedMatmulMethod | None = None
) -> Tensor:
    """Multiply each group of rows by its own matrix: x[group g] @ weight[g]ᵀ.

    Args:
        x: [M, in], the rows of group 0 first, then those of group 1, and so on.
        weight: [X, out, in], in the type of `x`.
        group_sizes: [X] integers that sum to M; a group may be empty.
        method: None chooses by the rule above.

    Returns:
        [M, out]. Differentiable once in `x` and `weight`.
    """
    method = method or choose_method(x, weight)
    result: Tensor = _GroupedMatmul.apply(x, weight, group_sizes, method)  # type: ignore[no-untyped-call]
    return result


def choose_method(x: Tensor, weight: Tensor) -> GroupedMatmulMethod:
    """The rule of the module's docstring."""
    aligned = all(size * x.element_size() % ALIGNMENT == 0 for size in weight.shape[1:])
    return _chosen(x.device.type, x.dtype, aligned and len(x) > 0)


@cache
def _chosen(device: str, dtype: torch.dtype, fits: bool) -> GroupedMatmulMethod:
    """Decide and log, once for each outcome."""
    method: GroupedMatmulMethod = "torch" if device == "cuda" and dtype == torch.bfloat16 and fits else "loop"
    logger.debug("grouped products on %s in %s (shapes fit torch's kernel: %s): %s", device, dtype, fits, method)
    return method


class _GroupedMatmul(torch.autograd.Function):
    """The product and its two gradients, which are grouped products themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group_sizes: Tensor, method: GroupedMatmulMethod) -> Tensor:
        ctx.save_for_backward(x, weight)
        if method == "torch":
            ctx.offsets, ctx.bounds = group_sizes.cumsum(0, dtype=torch.int32), None
            return F.grouped_mm(x, weight.mT, offs=ctx.offsets)
        ctx.offsets, ctx.bounds = None, _bounds(group_sizes)
        return _rows_times_weights(x, weight.mT, ctx.bounds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()  # the gradient of a sum is one number with strides of zero
        d_x = d_weight = None
        if ctx.offsets is not None:
            if ctx.needs_input_grad[0]:
                d_x = F.grouped_mm(grad, weight, offs=ctx.offsets)
            if ctx.needs_input_grad[1]:
                d_weight = F.grouped_mm(grad.mT, x, offs=ctx.offsets)
            return d_x, d_weight, None, None
        if ctx.needs_input_grad[0]:
            d_x = _rows_times_weights(grad, weight, ctx.bounds)
        if ctx.needs_input_grad[1]:
            d_weight = torch.empty_like(weight)
            for (start, end), out in zip(ctx.bounds, d_weight, strict=True):
                if start == end:
                    out.zero_()
                else:
                    torch.mm(grad[start:end].mT, x[start:end], out=out)
        return d_x, d_weight, None, None


def _bounds(group_sizes: Tensor) -> list[tuple[int, int]]:
    """First row of every group, and the row after its last."""
    ends = group_sizes.cumsum(0).tolist()
    return list(zip([0, *ends], ends, strict=False))


def _rows_times_weights(x: Tensor, weight: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
    """[M, in] times [X, in, out] -> [M, out], group by group."""
    out = x.new_empty(len(x), weight.shape[2])
    for group, (start, end) in enumerate(bounds):
        if start < end:
            torch.mm(x[start:end], weight[group], out=out[start:end])
    return out
