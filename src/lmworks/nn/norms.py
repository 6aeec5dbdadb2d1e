"""RMSNorm and LayerNorm. The mean square is taken in float32 whatever the input type, as in Llama."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.kernels.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang & Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        return rms_norm(x, self.weight, self.eps)
