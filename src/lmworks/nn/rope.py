"""Rotary position embedding: each pair of coordinates is turned by an angle proportional to the position.

The dot product of two turned vectors depends only on the difference of their positions
(Su et al., 2021, arXiv:2104.09864). Half-split layout: coordinate i is paired with i + D/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float, device: torch.device | str | None = None) -> Tensor:
    """[D/2] float32 angular speeds, theta^(-2i/D)."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)


def llama3_scaled(frequencies: Tensor, factor: float, low: float, high: float, original_context: int) -> Tensor:
    """Slow the long wavelengths by `factor`, keep the short ones, blend between (Llama 3.1).

    Args:
        frequencies: [D/2] angular speeds.
        factor: how much longer the context became.
        low: wavelengths above `original_context / low` are fully slowed.
        high: wavelengths below `original_context / high` are kept.
        original_context: the context before stretching.
    """
    wavelength = 2 * math.pi / frequencies
    blend = ((original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def rope_table(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines, each [N, 1, D], for packed positions [N]; angles are computed in float32."""
    angles = positions.float()[:, None] * frequencies[None, :]
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [N, H, D] vectors by the angles of `rope_table`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
