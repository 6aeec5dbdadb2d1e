"""Greedy choices and the check that logits are numbers, in one pass over them. Knows no request."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lmworks.kernels.native.library import library


def row_argmax(x: Tensor) -> Tensor:
    """The first column of each row's maximum, or -1 where there is none: a NaN, or nothing finite at the top.

    Args:
        x: [R, V] float32, at least one column; minus infinity is a number like others.

    Returns:
        [R] int64.
    """
    native = library()
    if native is None or x.device.type != "cpu" or x.dtype != torch.float32 or x.stride(-1) != 1:
        return row_argmax_reference(x)
    rows, columns = x.shape
    result = torch.empty(rows, dtype=torch.int64)
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    native.lm_argmax.argtypes = [pointer, size, size, size, pointer]
    native.lm_argmax.restype = None
    native.lm_argmax(x.data_ptr(), rows, columns, x.stride(0), result.data_ptr())
    return result


def row_argmax_reference(x: Tensor) -> Tensor:
    """The formula."""
    return torch.where(x.amax(-1).isfinite(), x.argmax(-1), -1)
