"""Rounding weights to 8 bits natively: as fast as they can be read. The formula is `nn.quantized_grid.quantize_groups`.

Knows no module.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lmworks.kernels.native.library import library


def quantize_int8(weight: Tensor, group_size: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Round a matrix to the nearest points of a symmetric grid of 8 bits.

    Args:
        weight: [out, in] float32 or bfloat16.
        group_size: columns that share a scale; 0 is the whole row.
        scale_dtype: float32, or float16, to which scales are rounded first.

    Returns:
        [out, in] int8 and [out, groups] float32; None where there are no native operations for these types.
    """
    native = library()
    narrow = weight.dtype == torch.bfloat16
    fits = weight.device.type == "cpu" and (narrow or weight.dtype == torch.float32)
    if native is None or not fits or scale_dtype not in (torch.float16, torch.float32):
        return None
    rows, columns = weight.shape
    groups = -(-columns // group_size) if group_size else 1
    weight = weight.detach().contiguous()
    values, scale = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows, groups)
    number, pointer = ctypes.c_int, ctypes.c_void_p
    native.lm_quantize_int8.argtypes = [pointer, number, ctypes.c_int64, number, number, number, pointer, pointer]
    native.lm_quantize_int8.restype = None
    native.lm_quantize_int8(
        weight.data_ptr(), narrow, rows, columns, group_size, scale_dtype == torch.float16, values.data_ptr(),
        scale.data_ptr(),
    )  # fmt: skip
    return values, scale
