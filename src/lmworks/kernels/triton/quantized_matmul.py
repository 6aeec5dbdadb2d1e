"""Products of a few rows with weights of 8 or 4 bits on a GPU, the weights widened on their way to the product.

Reading the weights is what such a product costs, so they are read once and as they are stored. Scales of whole rows
multiply sums; those of groups multiply weights, which are then rounded to the type of the activations. The formula is
that of `kernels.quantized_matmul`. Knows no module.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmworks.kernels.triton.launching import next_power, product_type

MOST_ROWS = 64
"""Of activations to a program."""
COLUMNS = 128
"""Inputs of one turn of the loop: a multiple or a part of every group."""


def quantized_matmul(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, group_size: int) -> Tensor:
    """Compute x @ ((weight - zero) · scale)ᵀ.

    Args:
        x: [..., in] float32, bfloat16 or float16.
        weight: [out, in] int8, or [out, ceil(in / 2)] uint8 of two values each, the first the lower.
        scale: [out, groups] floating point.
        zero: [out, groups], the value that means 0.0; None is 0 at 8 bits and 8 at 4.
        group_size: inputs that share a scale, a power of two from 32 on; 0 is the whole row.

    Returns:
        [..., out] in the type of `x`.
    """
    size, outputs = x.shape[-1], len(weight)
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    result = torch.empty((len(rows), outputs), dtype=x.dtype, device=x.device)
    if result.numel():
        block_rows = max(16, next_power(min(len(rows), MOST_ROWS)))
        block_outputs = 16 if block_rows == 16 else 32
        _multiply_tile[(triton.cdiv(outputs, block_outputs), triton.cdiv(len(rows), block_rows))](
            rows, weight, scale, zero, result, len(rows), outputs, size,
            rows.stride(0), weight.stride(0), scale.stride(0),
            ROWS=block_rows, OUTPUTS=block_outputs, COLUMNS=COLUMNS,
            GROUP=group_size, PACKED=weight.dtype == torch.uint8, PRODUCT=product_type(x.dtype),
            num_warps=4, num_stages=3,
        )  # fmt: skip
    return result.view(*x.shape[:-1], outputs)


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_tile(
    x: tl.tensor, weight: tl.tensor, scale: tl.tensor, zero: tl.tensor, result: tl.tensor, num_rows: tl.tensor,
    num_outputs: tl.tensor, num_columns: tl.tensor, x_row: tl.tensor, weight_row: tl.tensor, scale_row: tl.tensor,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, PACKED: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    real, inside = row < num_rows, output < num_outputs
    x += row[:, None].to(tl.int64) * x_row
    weight += output[None, :].to(tl.int64) * weight_row
    grid = output[None, :].to(tl.int64) * scale_row
    BYTES: tl.constexpr = COLUMNS // 2 if PACKED else COLUMNS
    GROUPS: tl.constexpr = COLUMNS // GROUP if 0 < GROUP < COLUMNS else 1
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in range(0, num_columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        byte = (first // 2 if PACKED else first) + tl.arange(0, BYTES)
        held = (byte * 2 if PACKED else byte) < num_columns
        group = first // GROUP + tl.arange(0, GROUPS) if GROUP > 0 else tl.arange(0, 1)
        there = inside[None, :] & ((group * GROUP < num_columns)[:, None])
        middle = tl.full((GROUPS, OUTPUTS), 8.0 if PACKED else 0.0, tl.float32)
        if zero is not None:
            middle = tl.load(zero + grid + group[:, None], mask=there, other=0.0).to(tl.float32)
        factor = tl.full((GROUPS, OUTPUTS), 1.0, tl.float32)
        if GROUP > 0:
            factor = tl.load(scale + grid + group[:, None], mask=there, other=0.0).to(tl.float32)
        middle = _spread(middle, GROUPS, BYTES // GROUPS, OUTPUTS)
        factor = _spread(factor, GROUPS, BYTES // GROUPS, OUTPUTS)
        given = tl.load(x + column[None, :], mask=real[:, None] & (column < num_columns)[None, :], other=0.0)
        value = tl.load(weight + byte[:, None], mask=inside[None, :] & held[:, None], other=0)
        if PACKED:
            low, high = tl.split(tl.reshape(given, (ROWS, BYTES, 2)))
            dense = (((value & 15).to(tl.float32) - middle) * factor).to(PRODUCT)
            total = tl.dot(low.to(PRODUCT), dense, total, input_precision="ieee")
            dense = (((value >> 4).to(tl.float32) - middle) * factor).to(PRODUCT)
            total = tl.dot(high.to(PRODUCT), dense, total, input_precision="ieee")
        else:
            dense = ((value.to(tl.float32) - middle) * factor).to(PRODUCT)
            total = tl.dot(given.to(PRODUCT), dense, total, input_precision="ieee")
    if GROUP == 0:
        total = total * tl.load(scale + grid, mask=inside[None, :], other=0.0).to(tl.float32)
    at = row[:, None].to(tl.int64) * num_outputs + output[None, :]
    tl.store(result + at, total.to(result.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def _spread(numbers: tl.tensor, GROUPS: tl.constexpr, SIZE: tl.constexpr, OUTPUTS: tl.constexpr) -> tl.tensor:
    """[groups, outputs] -> [groups · size, outputs]."""
    wide = tl.broadcast_to(numbers[:, None, :], (GROUPS, SIZE, OUTPUTS))
    return tl.reshape(wide, (GROUPS * SIZE, OUTPUTS))
