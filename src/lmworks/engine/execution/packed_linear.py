"""Linear maps whose weights lie in memory as the native products want them.

Packed once, a weight is read front to back by every step. For serving only: there is no gradient. Knows no request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from lmworks.engine.config import Quantization
from lmworks.kernels.native.memory import release_rest
from lmworks.kernels.packed_matmul import PackedWeight, pack_grid, pack_weight, packable, packed_matmul
from lmworks.nn.quantized import QuantizedEmbedding, QuantizedLinear, quantize_groups

READ_BY_OTHERS = frozenset({"kv_b_proj"})
"""Latent attention absorbs this one into queries and outputs."""

SERVED = (nn.Linear, QuantizedLinear)

HEAD = "lm_head"

GRIDS: dict[Quantization, tuple[int, int]] = {"int8": (8, 32), "int4": (4, 32)}
"""Bits and group size of weights that are quantized while loading."""


class PackedLinear(nn.Module):
    """A served `nn.Linear` or `QuantizedLinear`.

    Args:
        linear: its weight is copied.
        quantization: of a floating-point weight; a quantized one keeps its grid.
    """

    weight: PackedWeight

    def __init__(self, linear: nn.Linear | QuantizedLinear, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization
        self.dtype = linear.weight.dtype
        self.keeps_grid = isinstance(linear, QuantizedLinear)
        bias = None if linear.bias is None else linear.bias.detach().float()
        if isinstance(linear, QuantizedLinear):
            self.shape = torch.Size((linear.out_features, linear.in_features))
            grid = linear.quantized_weight()
            self.weight = pack_grid(grid.values, grid.scale, grid.zero, grid.bits, grid.group_size, bias)
        else:
            self.shape = linear.weight.shape
            self.weight = self._packed(linear.weight, bias)

    @classmethod
    def of(cls, weight: PackedWeight, quantization: Quantization, dtype: torch.dtype, *, keeps_grid: bool) -> Self:
        """One that was packed before; `dtype` is what its weights were before that."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.quantization, self.dtype, self.keeps_grid = quantization, dtype, keeps_grid
        self.shape = torch.Size((weight.out_features, weight.in_features))
        self.weight = weight
        return self

    def repack(self, weight: Tensor) -> None:
        """Take on other floating-point weights, [out, in], in the same memory."""
        assert not self.keeps_grid, "weights on a grid of their own take on no others"
        made = self._packed(weight.to(self.dtype), None)
        self.weight.packed.copy_(made.packed)

    def _packed(self, weight: Tensor, bias: Tensor | None) -> PackedWeight:
        if self.quantization not in GRIDS:
            return pack_weight(weight.detach(), bias)
        grid = quantize_groups(weight, *GRIDS[self.quantization], scale_dtype=torch.float16)
        return pack_grid(grid.values, grid.scale, grid.zero, grid.bits, grid.group_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        return packed_matmul(x, self.weight)


def pack_linears(model: nn.Module, quantization: Quantization) -> None:
    """Replace every linear map of a model that nobody else uses, but those whose weight others read.

    A quantized map on a grid that the native products lack stays as it is. Tables on a grid are read off it: of a table
    a step needs single rows, and of a tied one the head has packed its own.
    """
    for parent, name, child in _linears(model):
        if not isinstance(child, QuantizedLinear) or packable(child.bits, child.group_size, child.weight_zero):
            # The head decides between near ties: at four bits it would cost more than all else together.
            spared = quantization == "int4" and name == HEAD
            setattr(parent, name, PackedLinear(child, "int8" if spared else quantization))
    for parent in list(model.modules()):
        for name, table in list(parent.named_children()):
            if isinstance(table, QuantizedEmbedding):
                weight = table.dequantized(table.given)
                setattr(parent, name, nn.Embedding(len(weight), table.embedding_dim, _weight=weight, _freeze=True))
    release_rest()  # models share no memory, so that each gives all of its own back


def quantize_linears(model: nn.Module, quantization: Quantization) -> None:
    """The same in PyTorch, where there are no native products."""
    for parent, name, child in _linears(model):
        if isinstance(child, nn.Linear):
            bits, group_size = GRIDS["int8" if name == HEAD else quantization]
            setattr(parent, name, QuantizedLinear.from_linear(child, bits=bits, group_size=group_size))


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | QuantizedLinear]]:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Subclasses have reasons of their own.
            if name not in READ_BY_OTHERS and isinstance(child, nn.Linear | QuantizedLinear) and type(child) in SERVED:
                yield parent, name, child
