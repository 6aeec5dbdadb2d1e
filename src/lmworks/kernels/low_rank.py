"""Updates of low rank that rows of a product may get, each row another one (LoRA, arXiv:2106.09685).

A row's update is the same bits whatever the others get: `low_rank_update` computes it in native code where there is a
compiler, and `low_rank_update_reference` as it is written. Knows no module and no adapter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from lmworks.kernels.native.library import library

TYPES = {torch.float32: 0, torch.bfloat16: 1}


class LowRankStruct(Structure):
    """`lm::LowRank`; all zeros is no update."""

    _fields_ = (("down", c_void_p), ("up", c_void_p), ("rank", c_int32), ("type", c_int32), ("scale", c_float))


@dataclass(frozen=True, eq=False)
class LowRank:
    """y += scale · (x downᵀ) up."""

    down: Tensor
    """[r, in] float32 or bfloat16, contiguous."""
    up: Tensor
    """[r, out] of the same type, contiguous: LoRA's B, transposed."""
    scale: float

    def __post_init__(self) -> None:
        assert self.down.dtype == self.up.dtype, "one type for both"
        assert self.down.is_contiguous(), "native code reads whole arrays"
        assert self.up.is_contiguous(), "native code reads whole arrays"

    @property
    def nbytes(self) -> int:
        """Of both matrices."""
        return self.down.nbytes + self.up.nbytes

    def struct(self) -> LowRankStruct:
        """For the native side; the tensors must outlive it."""
        return LowRankStruct(
            self.down.data_ptr(), self.up.data_ptr(), len(self.down), TYPES[self.down.dtype], self.scale
        )


def low_rank_update(x: Tensor, y: Tensor, updates: Sequence[LowRank | None], chosen: Tensor) -> Tensor:
    """Add to each row of a product what its update says.

    Args:
        x: [N, in] of the product.
        y: [N, out], the product; it is not changed.
        updates: those that occur; None changes nothing.
        chosen: [N] int32 number of each row's update, -1 for none.

    Returns:
        [N, out] in the type of `y`; sums are float32.
    """
    loaded = library() if x.device.type == "cpu" else None
    if loaded is None:
        return low_rank_update_reference(x, y, updates, chosen)
    structs = (LowRankStruct * len(updates))(*(LowRankStruct() if u is None else u.struct() for u in updates))
    rows, sums = x.float().contiguous(), y.to(torch.float32, copy=True).contiguous()
    loaded.lm_low_rank(
        structs, c_void_p(chosen.data_ptr()), ctypes.c_int64(len(x)), x.shape[1], y.shape[1],
        c_void_p(rows.data_ptr()), c_void_p(sums.data_ptr()),
    )  # fmt: skip
    return sums.to(y.dtype)


def low_rank_update_reference(x: Tensor, y: Tensor, updates: Sequence[LowRank | None], chosen: Tensor) -> Tensor:
    """The same as it is written; the oracle, and what runs elsewhere than on a CPU with a compiler."""
    sums = y.float()
    for number, update in enumerate(updates):
        if update is not None:
            low = update.scale * (x.float() @ update.down.float().T)
            sums = torch.where((chosen == number)[:, None], sums + low @ update.up.float(), sums)
    return sums.to(y.dtype)
