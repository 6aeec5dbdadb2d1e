"""RMSNorm, LayerNorm, BatchNorm in the forms models use. RMSNorm's statistics are float32, as in Llama."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.kernels.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang & Sennrich, 2019, arXiv:1910.07467).

    Args:
        size: E.
        eps: added to the mean square.
        unit_offset: the weight is stored less one, and multiplied in float32 (Gemma).
        affine: whether there is a weight.
    """

    weight: nn.Parameter | None

    def __init__(self, size: int, eps: float, *, unit_offset: bool = False, affine: bool = True) -> None:
        super().__init__()
        self.eps, self.unit_offset = eps, unit_offset
        self.register_parameter("weight", nn.Parameter(torch.empty(size)) if affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as the plain normalization."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.unit_offset else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        if self.weight is None:
            return nn.functional.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        if self.unit_offset:
            return rms_norm(x.float(), 1.0 + self.weight.float(), self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


class UnitOffsetLayerNorm(nn.LayerNorm):
    """LayerNorm whose weight is stored less one (Nemotron-4, arXiv:2402.16819)."""

    def reset_parameters(self) -> None:
        """Begin as the plain normalization."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        return nn.functional.layer_norm(x, self.normalized_shape, 1.0 + self.weight, self.bias, self.eps)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over packed tokens, for comparison: it mixes documents while training (arXiv:1502.03167)."""


def build_norm(
    kind: str, size: int, eps: float, *, bias: bool = True, affine: bool = True, unit_offset: bool = False
) -> nn.Module:
    """The norm called `kind`: "rms", "layer" or "batch"."""
    if kind == "rms":
        return RMSNorm(size, eps, unit_offset=unit_offset, affine=affine)
    if kind == "layer" and unit_offset:
        return UnitOffsetLayerNorm(size, eps, bias=bias)
    if kind == "layer":
        return nn.LayerNorm(size, eps, elementwise_affine=affine, bias=bias)
    return TokenBatchNorm(size, eps, affine=affine)
