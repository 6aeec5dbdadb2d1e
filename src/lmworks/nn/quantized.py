"""Linear maps and embeddings whose weights are 8 or 4 bits on a grid, and the packed form they have on disk.

The values on disk are those of the compressed-tensors format `pack-quantized`: four or eight weights to an int32,
each shifted so that it is unsigned. Knows no file and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmworks.kernels.quantized_matmul import dequantize, pack_nibbles, quantized_matmul, unpack_nibbles
from lmworks.nn.quantized_grid import QuantizedWeight, num_groups, quantize_groups

__all__ = [
    "QuantizedEmbedding", "QuantizedLinear", "QuantizedMatrix", "QuantizedWeight", "pack_int32", "quantize_groups",
    "unpack_int32",
]  # fmt: skip


GRID = ("weight", "weight_scale", "weight_zero")
"""The tensors of a `QuantizedMatrix`."""


class QuantizedMatrix(nn.Module):
    """A matrix [rows, columns] on a grid, held as small as it is on disk. Inference only: all of it is buffers.

    Casting the model leaves the grid as it is: a scale rounded once more would move every weight of its group.
    """

    weight: Tensor
    """[rows, columns] int8, or [rows, ceil(columns / 2)] uint8 of two 4-bit values each, the first the lower."""
    weight_scale: Tensor
    """[rows, groups] floating point."""
    weight_zero: Tensor | None
    """[rows, groups] floating point; see `QuantizedWeight.zero`."""

    def __init__(
        self, rows: int, columns: int, *, bits: int = 8, group_size: int = 0, zero: bool = False,
        scale_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.columns, self.bits, self.group_size = columns, bits, group_size
        stored = (rows, columns) if bits == 8 else (rows, -(-columns // 2))
        groups = (rows, num_groups(columns, group_size))
        self.register_buffer("weight", torch.zeros(stored, dtype=torch.int8 if bits == 8 else torch.uint8))
        self.register_buffer("weight_scale", torch.ones(groups, dtype=scale_dtype))
        self.register_buffer("weight_zero", torch.zeros(groups, dtype=scale_dtype) if zero else None)

    def set_grid(self, grid: QuantizedWeight) -> None:
        """Take on other weights on a grid of the same kind; scales keep the module's type."""
        assert (grid.bits, grid.group_size) == (self.bits, self.group_size)
        assert (grid.zero is None) == (self.weight_zero is None)
        self.weight = grid.values if self.bits == 8 else pack_nibbles(grid.values)
        self.weight_scale = grid.scale.to(self.weight_scale.dtype)
        if self.weight_zero is not None and grid.zero is not None:
            self.weight_zero = grid.zero.to(self.weight_zero.dtype)

    def share(self, other: QuantizedMatrix) -> None:
        """Take on the tensors of another matrix of the same kind, as a tied head does."""
        for name in GRID:
            setattr(self, name, getattr(other, name))

    def quantized_weight(self) -> QuantizedWeight:
        """The values, one to an element, and their grid in float32."""
        values = self.weight if self.bits == 8 else unpack_nibbles(self.weight, self.columns)
        zero = None if self.weight_zero is None else self.weight_zero.float()
        return QuantizedWeight(values, self.weight_scale.float(), zero, self.bits, self.group_size)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, columns] weights, computed in float32 and rounded once."""
        return self.quantized_weight().dequantized(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: tensor for name in GRID if (tensor := getattr(self, name)) is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # a method of torch's without types
        for name, tensor in kept.items():
            if (moved := getattr(self, name)).dtype != tensor.dtype:
                setattr(self, name, moved.to(tensor.dtype) if tensor.is_meta else tensor.to(moved.device))
        return self


class QuantizedLinear(QuantizedMatrix):
    """y = x ((weight - zero) · scale)ᵀ + bias."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype | None = None, bits: int = 8,
        group_size: int = 0, zero: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(out_features, in_features, bits=bits, group_size=group_size, zero=zero, scale_dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, scale_dtype: torch.dtype | None = None, *, bits: int = 8, group_size: int = 0,
        symmetric: bool = True,
    ) -> QuantizedLinear:  # fmt: skip
        """Quantize a linear map by rounding to nearest.

        Args:
            linear: the map; it is not changed.
            scale_dtype: type in which scales and bias will be stored; that of the weights by default.
            bits: see `quantize_groups`, as the following.
            group_size: columns that share a scale; 0 is the whole row.
            symmetric: without zero points.
        """
        dtype = scale_dtype or linear.weight.dtype
        grid = quantize_groups(linear.weight, bits, group_size, symmetric=symmetric, scale_dtype=dtype)
        return cls.from_grid(grid, linear.bias, dtype)

    @classmethod
    def from_grid(cls, grid: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype) -> QuantizedLinear:
        """A linear map with these weights; `dtype` is that of scales and bias."""
        out_features, in_features = grid.values.shape
        with grid.values.device:
            made = cls(
                in_features, out_features, bias=bias is not None, dtype=dtype, bits=grid.bits,
                group_size=grid.group_size, zero=grid.zero is not None,
            )  # fmt: skip
        made.set_grid(grid)
        if bias is not None and made.bias is not None:
            made.bias.data.copy_(bias.detach())
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = quantized_matmul(x, self.weight, self.weight_scale, self.weight_zero, self.group_size)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Sizes, for printing the model."""
        grid = f"int{self.bits}" + (f", group_size={self.group_size}" if self.group_size else "")
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {grid}"


class QuantizedEmbedding(QuantizedMatrix):
    """A table whose rows are dequantized when they are looked up.

    Args:
        num_embeddings: rows.
        embedding_dim: columns.
        dtype: of what it gives, and of its scales.
        bits: see `QuantizedWeight`, as the following.
        group_size: columns that share a scale; 0 is the whole row.
        zero: whether there are zero points.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: torch.dtype | None = None, bits: int = 8,
        group_size: int = 0, zero: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(num_embeddings, embedding_dim, bits=bits, group_size=group_size, zero=zero, scale_dtype=dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        # Casting the model changes what is given, not the scales; something has to remember it.
        self.register_buffer("_given", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def given(self) -> torch.dtype:
        """Type of what is given."""
        marker = self._buffers["_given"]
        assert marker is not None
        return marker.dtype

    def forward(self, input_ids: Tensor) -> Tensor:
        """[...] ids -> [..., columns]."""
        ids = input_ids.flatten()
        zero = None if self.weight_zero is None else self.weight_zero[ids]
        rows = dequantize(self.weight[ids], self.weight_scale[ids], zero, self.columns, self.group_size, self.given)
        return rows.view(*input_ids.shape, self.columns)

    def extra_repr(self) -> str:
        """Sizes, for printing the model."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int{self.bits}"


def pack_int32(values: Tensor, bits: int) -> Tensor:
    """[out, in] values as in `QuantizedWeight` -> [out, ceil(in · bits / 32)] int32, filled up with zeros."""
    if bits == 4:
        words = pack_nibbles(F.pad(values, (0, -values.shape[1] % 8)))
    else:
        words = F.pad((values.to(torch.int16) + 128).to(torch.uint8), (0, -values.shape[1] % 4))
    return words.contiguous().view(torch.int32)


def unpack_int32(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The inverse of `pack_int32`, `columns` being `in`."""
    words = packed.contiguous().view(torch.uint8)
    if bits == 4:
        return unpack_nibbles(words, columns)
    return (words[:, :columns].to(torch.int16) - 128).to(torch.int8)
