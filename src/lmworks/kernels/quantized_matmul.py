"""Matrix product with weights of 8 or 4 bits on a grid: the formula, and three faster ways that agree with it.

Knows no module and no file format. Which path runs is decided per call from dtype, device and number of
rows, logged once for each outcome, and can be forced with the environment variable
`LMWORKS_QUANTIZED_MATMUL` (`reference`, `dequantize`, `int8pack` or `triton`). On a GPU few rows go through a Triton
kernel, the operation `lmworks::quantized_matmul`.

On an AVX-512 core with 576 to 2048 features, `int8pack` in bfloat16 takes about a third of the dense
bfloat16 product's time for one row, the same for eight, and less than dequantizing up to 16; in float32 it is
scalar code, 5 to 40 times slower than the dense product, so it is never chosen there.
"""

from __future__ import annotations

import logging
import os
import platform
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError
from lmworks.kernels.triton import launching

Path = Literal["reference", "dequantize", "int8pack", "triton"]
PATHS: tuple[Path, ...] = ("reference", "dequantize", "int8pack", "triton")
FORCE_VARIABLE = "LMWORKS_QUANTIZED_MATMUL"
INT8PACK_MAX_ROWS = 16
"""Beyond this many rows dequantizing once and calling the dense product is faster."""
INT8PACK_COLUMNS = 16
"""torch's kernel reads the input dimension in runs of this many and past the end of any other (torch 2.13)."""
TRITON_MAX_ROWS = 64
"""Beyond this many rows dequantizing once and calling the dense product should be faster."""
TRITON_LEAST_GROUP = 32
"""Groups shorter than this are no operand of a product."""

MIDDLE: dict[int, int] = {4: 8, 8: 0}
"""The value that means 0.0 where a grid has no zero points, by bits: 4 bits are 0 to 15, 8 bits are signed."""

logger = logging.getLogger(__name__)


def quantized_matmul_reference(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None = None, group_size: int = 0
) -> Tensor:
    """Compute x @ ((weight - zero) · scale)ᵀ, literally; the oracle. Shapes as in `quantized_matmul`."""
    return F.linear(x, dequantize(weight, scale, zero, x.shape[-1], group_size, x.dtype))


def quantized_matmul(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None = None, group_size: int = 0
) -> Tensor:
    """Compute x @ ((weight - zero) · scale)ᵀ with weights of 8 or 4 bits.

    Args:
        x: [..., in] activations.
        weight: [out, in] int8, or [out, ceil(in / 2)] uint8 as `pack_nibbles` makes them.
        scale: [out, groups], one factor per output row and `group_size` columns.
        zero: [out, groups], the value that means 0.0; None is 0 at 8 bits and 8 at 4.
        group_size: columns that share a scale; 0 is the whole row.

    Returns:
        [..., out] in the type of `x`.

    Raises:
        ConfigError: the environment variable forces an unknown path, or `int8pack` where it would read beyond the
            columns or the grid is not int8 by row.
    """
    plain = weight.dtype == torch.int8 and zero is None and not group_size
    path = choose_path(x, plain=plain, group_size=group_size)
    if path == "triton":
        product: Tensor = torch.ops.lmworks.quantized_matmul(x, weight, scale, zero, group_size)
        return product
    if path == "reference" or not plain:
        return quantized_matmul_reference(x, weight, scale, zero, group_size)
    scale = scale.to(x.dtype).flatten()
    if path == "int8pack":
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        packed: Tensor = torch._weight_int8pack_mm(rows, weight, scale)
        return packed.view(*x.shape[:-1], -1)
    # Scaling the product instead of the weight saves a pass over [out, in].
    return F.linear(x, weight.to(x.dtype)) * scale


def dequantize(
    weight: Tensor, scale: Tensor, zero: Tensor | None, columns: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    """Stored weights to [out, columns] floating point; shapes as in `quantized_matmul`."""
    values = weight if weight.dtype == torch.int8 else unpack_nibbles(weight, columns)
    return from_grid(values, scale, zero, group_size, dtype)


def from_grid(values: Tensor, scale: Tensor, zero: Tensor | None, group_size: int, dtype: torch.dtype) -> Tensor:
    """(values - zero) · scale, in float32 at least and rounded once.

    Args:
        values: [out, in] int8 or uint8 up to 15.
        scale: [out, groups].
        zero: [out, groups]; None is `MIDDLE`.
        group_size: columns that share a scale, the last of them maybe fewer; 0 is the whole row.
        dtype: of the result.
    """
    wide = torch.promote_types(dtype, torch.float32)
    columns = values.shape[1]
    missing = scale.shape[1] * (group_size or columns) - columns
    whole = F.pad(values, (0, missing)) if missing else values.contiguous()
    grouped = whole.view(len(values), scale.shape[1], group_size or columns).to(wide)
    if zero is not None:
        grouped = grouped - zero.to(wide)[:, :, None]
    elif middle := MIDDLE[8 if values.dtype == torch.int8 else 4]:
        grouped = grouped - middle
    return (grouped * scale.to(wide)[:, :, None]).flatten(1)[:, :columns].to(dtype)


def pack_nibbles(values: Tensor) -> Tensor:
    """[out, in] uint8 up to 15 -> [out, ceil(in / 2)] uint8: two to a byte, the first the lower."""
    even = F.pad(values, (0, values.shape[1] % 2))
    return even[:, ::2] | (even[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor, columns: int) -> Tensor:
    """The inverse of `pack_nibbles`, `columns` being `in`."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :columns]


def choose_path(x: Tensor, *, plain: bool = True, group_size: int = 0) -> Path:
    """The path for these activations, unless the environment forces one; `plain` is int8 with a scale per row."""
    forced = os.environ.get(FORCE_VARIABLE)
    if forced is not None:
        if forced == "int8pack" and (x.shape[-1] % INT8PACK_COLUMNS or not plain):
            found = x.shape[-1] if plain else "a grid of groups"
            raise ConfigError(
                f"{FORCE_VARIABLE} = 'int8pack' needs rows of a multiple of {INT8PACK_COLUMNS} columns, not {found}",
                "Unset it or force another path",
            )
        return _forced(forced)
    differentiable = x.requires_grad and torch.is_grad_enabled()
    if x.is_cuda and not differentiable and x.dtype in launching.TYPES and launching.available():
        whole = not group_size or (group_size >= TRITON_LEAST_GROUP and group_size.bit_count() == 1)
        if whole and x.numel() <= TRITON_MAX_ROWS * x.shape[-1]:
            return _log("triton", x.dtype, x.device.type)
    if not plain:
        return _log("dequantize", x.dtype, x.device.type)
    few = 0 < x.numel() <= INT8PACK_MAX_ROWS * x.shape[-1] and x.shape[-1] % INT8PACK_COLUMNS == 0
    fast = few and x.dtype == torch.bfloat16 and x.device.type == "cpu" and _MEASURED and not differentiable
    return _log("int8pack" if fast else "dequantize", x.dtype, x.device.type)


_MEASURED = platform.machine() in ("x86_64", "AMD64")
"""Only here is `int8pack` known to be faster."""


@cache
def _log(path: Path, dtype: torch.dtype, device: str) -> Path:
    """Say each decision once."""
    logger.info("quantized matmul: %s for %s on %s", path, dtype, device)
    return path


@cache
def _forced(name: str) -> Path:
    for path in PATHS:
        if path == name:
            logger.info("quantized matmul: %s, forced by %s", path, FORCE_VARIABLE)
            return path
    raise ConfigError(f"{FORCE_VARIABLE} = {name!r} is no path{nearest(name, list(PATHS))}", "Unset it or name a path")


_OPERATIONS = torch.library.Library("lmworks", "FRAGMENT")
_OPERATIONS.define("quantized_matmul(Tensor x, Tensor weight, Tensor scale, Tensor? zero, int group_size) -> Tensor")


@torch.library.impl(_OPERATIONS, "quantized_matmul", "CUDA")
def _on_gpu(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, group_size: int) -> Tensor:
    from lmworks.kernels.triton.quantized_matmul import quantized_matmul as fused

    return fused(x, weight, scale, zero, group_size)


torch.library.impl(_OPERATIONS, "quantized_matmul", "CPU")(quantized_matmul_reference)


@torch.library.register_fake("lmworks::quantized_matmul")  # type: ignore[untyped-decorator]
def _fake(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, group_size: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
