"""Root-mean-square normalization on a GPU in one pass over memory. Its formula is in `kernels.rms_norm`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmworks.kernels.triton.launching import next_power


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each vector to root mean square 1, then by `weight`.

    Args:
        x: [..., E] of any floating type.
        weight: [E].
        eps: added to the mean square.

    Returns:
        [..., E], contiguous, in the type that `x` and `weight` promote to.
    """
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    result = torch.empty(rows.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    if len(rows):
        block = next_power(size)
        _normalize_row[(len(rows),)](
            rows, weight.contiguous(), result, rows.stride(0), eps, SIZE=size, BLOCK=block,
            num_warps=min(16, max(1, block // 256)),
        )  # fmt: skip
    return result.view(x.shape)


@triton.jit
def _normalize_row(
    x: tl.tensor, weight: tl.tensor, result: tl.tensor, row_stride: tl.tensor, eps: tl.tensor, SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    given = tl.load(x + row * row_stride + column, mask=inside, other=0.0)
    wide = given.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    scaled = normed.to(given.dtype).to(tl.float32) * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + row * SIZE + column, scaled.to(result.dtype.element_ty), mask=inside)
