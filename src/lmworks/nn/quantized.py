"""Linear maps whose weights are int8 with one scale per output row, and the packed form they have on disk.

The values on disk are those of the compressed-tensors format `pack-quantized`: four weights to an int32, each
shifted by 128 so that it is unsigned. Knows no file and no model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmworks.kernels.quantized_matmul import quantized_matmul

QMAX = 127
"""Largest magnitude used, so that the grid is symmetric."""


class QuantizedLinear(nn.Module):
    """y = x (weight · weight_scale)ᵀ + bias, weights int8. Inference only: the weights are buffers."""

    weight: Tensor
    """[out, in] int8."""
    weight_scale: Tensor
    """[out, 1] floating point."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features, 1, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, scale_dtype: torch.dtype | None = None) -> QuantizedLinear:
        """Quantize a linear map by rounding to nearest.

        Args:
            linear: the map; it is not changed.
            scale_dtype: type in which scales and bias will be stored; that of the weights by default.
        """
        dtype = scale_dtype or linear.weight.dtype
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=dtype)
        made = made.to(linear.weight.device)
        made.weight, made.weight_scale = quantize_rows(linear.weight.detach(), dtype)
        if linear.bias is not None and made.bias is not None:
            made.bias.data.copy_(linear.bias.detach())
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = quantized_matmul(x, self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias

    def dequantized(self) -> Tensor:
        """[out, in] weights in the type of the scales."""
        return self.weight.to(self.weight_scale.dtype) * self.weight_scale

    def extra_repr(self) -> str:
        """Sizes, for printing the model."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, int8"


def quantize_rows(weight: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round each row to the grid scale · {-127 … 127} that just holds its largest magnitude.

    The scale is rounded to `scale_dtype` first and the weights are rounded against that, so the storage
    type of the scale adds no bias of its own.

    Args:
        weight: [out, in] floating point.
        scale_dtype: type of the returned scales.

    Returns:
        [out, in] int8 and [out, 1] scales; a row of zeros has scale 1.
    """
    wide = weight.float()
    largest = wide.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest / QMAX, torch.ones_like(largest)).to(scale_dtype)
    smallest = torch.finfo(scale_dtype).tiny
    scale = scale.clamp_min(smallest)
    return (wide / scale.float()).round().clamp(-QMAX, QMAX).to(torch.int8), scale


def pack_int8(weight: Tensor) -> Tensor:
    """[out, in] int8 -> [out, ceil(in / 4)] int32; the last word is filled with zeros."""
    shifted = (weight.to(torch.int16) + 128).to(torch.uint8)
    padded = F.pad(shifted, (0, -weight.shape[1] % 4))
    return padded.contiguous().view(torch.int32)


def unpack_int8(packed: Tensor, columns: int) -> Tensor:
    """[out, ceil(in / 4)] int32 -> [out, in] int8, `columns` being `in`."""
    shifted = packed.contiguous().view(torch.uint8)[:, :columns]
    return (shifted.to(torch.int16) - 128).to(torch.int8)
