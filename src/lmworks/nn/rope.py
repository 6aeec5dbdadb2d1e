"""Rotary position embedding: each pair of coordinates is turned by an angle proportional to the position.

The dot product of two turned vectors depends only on the difference of their positions
(Su et al., 2021, arXiv:2104.09864). Knows no configuration; scalings are functions of the angular speeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmworks.kernels.native.training import trains_natively
from lmworks.kernels.rotary import rotate
from lmworks.kernels.triton import launching

SpeedsOfLength = Callable[[Tensor], Tensor]
"""From document lengths [N] to angular speeds [N, R/2]."""


@dataclass(frozen=True)
class Rotation:
    """The angles of one batch of packed tokens, ready to turn vectors."""

    cos: Tensor
    """[N, 1, R] where R coordinates turn."""
    sin: Tensor
    interleaved: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Turn the first R coordinates of [N, H, D] vectors."""
        if launching.fuses(x):
            from lmworks.kernels.triton.rotary import turn

            return turn(x, self.cos, self.sin, self.interleaved)
        if not self.interleaved and torch.is_grad_enabled() and trains_natively(x, self.cos, self.sin):
            return rotate(x, self.cos, self.sin)
        rotary_dim = self.cos.shape[-1]
        turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
        if self.interleaved:
            pairs = turned.reshape(*turned.shape[:-1], -1, 2)
            across = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            across = torch.cat([-second, first], dim=-1)
        turned = turned * self.cos + across * self.sin
        return turned if rest.shape[-1] == 0 else torch.cat([turned, rest], dim=-1)


def rotation(
    positions: Tensor, speeds: Tensor, dtype: torch.dtype, *, interleaved: bool = False, factor: float | Tensor = 1.0
) -> Rotation:
    """The angles of packed positions, computed in float32.

    Args:
        positions: [N].
        speeds: [R/2] angular speeds, or [N, R/2] where they differ by token.
        dtype: of the vectors to turn.
        interleaved: pairs are neighbors rather than half a head apart.
        factor: multiplies cosines and sines (YaRN, LongRoPE); a number or [N].
    """
    angles = positions.float()[:, None] * speeds
    angles = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat([angles, angles], dim=-1)
    if isinstance(factor, Tensor):
        factor = factor[:, None]
    cos, sin = (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
    return Rotation(cos[:, None, :], sin[:, None, :], interleaved)


def inverse_frequencies(rotary_dim: int, theta: float, device: torch.device | str | None = None) -> Tensor:
    """[R/2] float32 angular speeds, theta^(-2i/R)."""
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim)


def llama3_scaled(frequencies: Tensor, factor: float, low: float, high: float, original_context: int) -> Tensor:
    """Slow the long wavelengths by `factor`, keep the short ones, blend between (Llama 3.1).

    Args:
        frequencies: [R/2] angular speeds.
        factor: how much longer the context became.
        low: wavelengths above `original_context / low` are fully slowed.
        high: wavelengths below `original_context / high` are kept.
        original_context: the context before stretching.
    """
    wavelength = 2 * math.pi / frequencies
    blend = ((original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def yarn_scaled(
    frequencies: Tensor, theta: float, factor: float, beta_fast: float, beta_slow: float, original_context: int,
    *, truncate: bool = True,
) -> Tensor:  # fmt: skip
    """Keep fast coordinates, slow the others by `factor`, blend between (YaRN, arXiv:2309.00071).

    Fast ones turn more than `beta_fast` times in the original context, slow ones less than `beta_slow` times.
    """
    size = 2 * frequencies.numel()

    def coordinate(turns: float) -> float:
        return size * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = coordinate(beta_fast), coordinate(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # the blend divides by their difference
    kept = 1 - ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / factor * (1 - kept) + frequencies * kept


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """How much YaRN sharpens the scores' operands for a context `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """What YaRN multiplies cosines and sines with."""
    if mscale and mscale_all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    return yarn_mscale(factor)


def longrope_attention_factor(factor: float, original_context: int) -> float:
    """What LongRoPE multiplies cosines and sines with, for a context `factor` times as long as the trained one."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_context))


def dynamic_speeds(rotary_dim: int, theta: float, factor: float, original_context: int) -> SpeedsOfLength:
    """A base that grows once the document exceeds the trained context (dynamic NTK)."""

    def speeds(lengths: Tensor) -> Tensor:
        grown = 1 + factor * (lengths - original_context).clamp(min=0).float() / original_context
        base = theta * grown ** (rotary_dim / (rotary_dim - 2))
        power = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=lengths.device) / rotary_dim
        return 1.0 / base[:, None] ** power

    return speeds


def longrope_speeds(
    frequencies: Tensor, short: Sequence[float], long: Sequence[float], original_context: int
) -> SpeedsOfLength:
    """Divisors per coordinate: one set for documents within the trained context, one beyond (arXiv:2402.13753)."""
    tables = torch.stack([1.0 / (torch.tensor(divisors) / frequencies) for divisors in (short, long)])
    return lambda lengths: tables.to(lengths.device)[(lengths > original_context).long()]
