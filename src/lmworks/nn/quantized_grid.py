"""Weights as small integers on a grid: w = (value - zero) · scale, one scale to a row or to a group of its columns.

Every integer format of the field is this grid, whatever its packing. Knows no module, no file and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels.quantize import quantize_int8
from lmworks.kernels.quantized_matmul import MIDDLE, from_grid

LIMITS: dict[int, tuple[int, int]] = {4: (0, 15), 8: (-127, 127)}
"""Values that rounding uses. -128 is left out, so that a grid of 8 bits is symmetric; files may hold it."""

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.72)
"""Shares of a group's range that 4 bits are tried on: clipping the largest weight makes the others finer."""
_ELEMENTS = 1 << 18
"""How many weights are rounded at a time: small enough to stay in a core's cache."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix [out, in] as values and the grid they count on."""

    values: Tensor
    """[out, in]: int8 of 8 bits, uint8 from 0 to 15 of 4 bits."""
    scale: Tensor
    """[out, groups] float32 (files give what they store); one group when `group_size` is 0. It may be negative."""
    zero: Tensor | None
    """[out, groups] like `scale`: the value, maybe between two, that means 0.0; None is `MIDDLE[bits]` throughout."""
    bits: int
    """4 or 8."""
    group_size: int
    """Consecutive columns that share a scale; 0 is the whole row. The last group may be shorter."""

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] weights, computed in float32 and rounded once."""
        return from_grid(self.values, self.scale, self.zero, self.group_size, dtype)


def num_groups(columns: int, group_size: int) -> int:
    """Scales in a row of so many columns."""
    return -(-columns // group_size) if group_size else 1


def quantize_groups(
    weight: Tensor, bits: int = 8, group_size: int = 0, *, symmetric: bool = True,
    scale_dtype: torch.dtype = torch.float32,
) -> QuantizedWeight:  # fmt: skip
    """Round a matrix to the nearest points of a grid.

    The scales are rounded to `scale_dtype` first and the weights against that, so the storage type adds no bias.
    At 4 bits several ranges are tried for each group and the one with the smallest squared error is taken, in which a
    weight counts by its magnitude: that keeps a model closer than counting all alike. The symmetric grid has one step
    more on one side, which the sign of the scale turns to the larger weight.

    Args:
        weight: [out, in] floating point.
        bits: 8 (symmetric only) or 4.
        group_size: columns that share a scale; 0 is the whole row.
        symmetric: without zero points; else they are whole numbers.
        scale_dtype: type in which the scales will be stored.

    Returns:
        The grid; a group of zeros has scale 1.

    Raises:
        ConfigError: another number of bits, a negative group size, or 8 bits with zero points.
    """
    if bits not in MIDDLE or group_size < 0 or (bits == 8 and not symmetric):
        raise ConfigError(
            f"weights are not quantized to {bits} bits in groups of {group_size}"
            + ("" if symmetric else " with zero points"),
            "Use 8 bits, symmetric, or 4 bits, with a positive group_size or 0 for whole rows",
        )
    rounded = quantize_int8(weight, group_size, scale_dtype) if bits == 8 else None
    if rounded is not None:
        return QuantizedWeight(*rounded, None, bits, group_size)
    rows, columns = weight.shape
    group = group_size or columns
    groups = num_groups(columns, group_size)
    step = max(1, _ELEMENTS // max(columns, 1))
    parts = []
    for first in range(0, rows, step):
        padded = F.pad(weight[first : first + step].detach().float(), (0, groups * group - columns))
        parts.append(_round(padded.reshape(-1, group), bits, symmetric, scale_dtype))
    values, scale, zero = (torch.cat(p) for p in zip(*parts, strict=True))
    values = values.view(rows, groups * group)[:, :columns].contiguous()
    return QuantizedWeight(
        values.to(torch.uint8 if bits == 4 else torch.int8), scale.view(rows, groups),
        None if symmetric else zero.view(rows, groups), bits, group_size,
    )  # fmt: skip


def _round(groups: Tensor, bits: int, symmetric: bool, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """[g, n] -> values [g, n], scales [g, 1] and zeros [g, 1], all float32; `groups` is not kept."""
    low, high = (b - MIDDLE[bits] for b in LIMITS[bits])
    least, most = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    if bits == 8:
        scale = _stored(torch.maximum(-least, most) / high, scale_dtype)
        return (groups / scale).round_().clamp_(low, high), scale, torch.zeros_like(scale)
    if symmetric:  # the further end falls on -8
        extent, shift = torch.where(-least >= most, -least, -most) / -low, torch.full_like(least, float(-low))
    else:
        least, most = least.clamp_max(0), most.clamp_min(0)
        extent = (most - least) / (high - low)
    importance = groups.abs()
    best: tuple[Tensor, ...] | None = None
    for share in _SHRINK:
        scale = _stored(extent * share, scale_dtype)
        zero = shift if symmetric else (-least * share / scale).round_().clamp_(*LIMITS[bits])
        values = (groups / scale).round_().add_(zero).clamp_(*LIMITS[bits])
        error = (values - zero).mul_(scale).sub_(groups).square_().mul_(importance).sum(1, keepdim=True)
        found = (values, scale, zero, error)
        if best is None:
            best = found
        else:
            better = error < best[3]
            best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None
    values, scale, zero, error = best
    # Of the values found, the scale that fits them best is a regression.
    steps = values - zero
    fitted = (importance * steps * groups).sum(1, keepdim=True) / (importance * steps.square()).sum(1, keepdim=True)
    fitted = _stored(torch.nan_to_num(fitted), scale_dtype)
    better = (steps * fitted - groups).square_().mul_(importance).sum(1, keepdim=True) < error
    return values, torch.where(better, fitted, scale), zero


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as their storage type rounds them, in float32: never zero, which would divide."""
    smallest = torch.finfo(dtype).tiny
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).to(dtype).float()
    return torch.where(scale.abs() < smallest, torch.full_like(scale, smallest).copysign(scale), scale)
