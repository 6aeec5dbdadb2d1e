"""Turning queries or keys by their positions (RoPE, arXiv:2104.09864) on a GPU, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmworks.kernels.triton.launching import next_power


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the first R coordinates of vectors.

    Args:
        x: [N, H, D] of any floating type.
        cos: [N, 1, R], contiguous.
        sin: [N, 1, R].
        interleaved: pairs are neighbors, rather than R/2 apart.

    Returns:
        [N, H, D], contiguous, in the type of `x`; computed in float32 and rounded once.
    """
    count, heads, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    result = torch.empty((count, heads, width), dtype=x.dtype, device=x.device)
    if result.numel():
        _turn_vector[(count, heads)](
            x, cos.contiguous(), sin.contiguous(), result, x.stride(0), x.stride(1), WIDTH=width, TURNED=cos.shape[-1],
            BLOCK=next_power(width), INTERLEAVED=interleaved, num_warps=1,
        )  # fmt: skip
    return result


@triton.jit
def _turn_vector(
    x: tl.tensor, cos: tl.tensor, sin: tl.tensor, result: tl.tensor, token_stride: tl.tensor, head_stride: tl.tensor,
    WIDTH: tl.constexpr, TURNED: tl.constexpr, BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
) -> None:  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, BLOCK)
    inside, turned = place < WIDTH, place < TURNED
    if INTERLEAVED:
        partner = place ^ 1
        first = place % 2 == 0
    else:
        first = place < TURNED // 2
        partner = tl.where(first, place + TURNED // 2, place - TURNED // 2)
    own = x + token * token_stride + head * head_stride
    value = tl.load(own + place, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(own + partner, mask=turned, other=0.0).to(tl.float32)
    c = tl.load(cos + token * TURNED + place, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + token * TURNED + place, mask=turned, other=0.0).to(tl.float32)
    value = value * c + tl.where(first, -other, other) * s
    at = (token * tl.num_programs(1) + head) * WIDTH + place
    tl.store(result + at, value.to(result.dtype.element_ty), mask=inside)
