"""Matrix product with int8 weights, one scale per output row: the formula, and two ways that agree with it.

Knows no module and no file format. Which path runs is decided per call from dtype, device and number of
rows, logged once for each outcome, and can be forced with the environment variable
`LMWORKS_QUANTIZED_MATMUL` (`reference`, `dequantize` or `int8pack`).

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

Path = Literal["reference", "dequantize", "int8pack"]
PATHS: tuple[Path, ...] = ("reference", "dequantize", "int8pack")
FORCE_VARIABLE = "LMWORKS_QUANTIZED_MATMUL"
INT8PACK_MAX_ROWS = 16
"""Beyond this many rows dequantizing once and calling the dense product is faster."""
INT8PACK_COLUMNS = 16
"""torch's kernel reads the input dimension in runs of this many and past the end of any other (torch 2.13)."""

logger = logging.getLogger(__name__)


def quantized_matmul_reference(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Compute x @ (weight · scale)ᵀ, literally; the oracle. Shapes as in `quantized_matmul`."""
    return F.linear(x, weight.to(x.dtype) * scale.to(x.dtype))


def quantized_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Compute x @ (weight · scale)ᵀ with int8 weights.

    Args:
        x: [..., in] activations.
        weight: [out, in] int8.
        scale: [out, 1], one factor per output row.

    Returns:
        [..., out] in the type of `x`.

    Raises:
        ConfigError: the environment variable forces an unknown path, or `int8pack` for a number of columns
            that it would read beyond.
    """
    path = choose_path(x)
    if path == "reference":
        return quantized_matmul_reference(x, weight, scale)
    scale = scale.to(x.dtype).flatten()
    if path == "int8pack":
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        packed: Tensor = torch._weight_int8pack_mm(rows, weight, scale)
        return packed.view(*x.shape[:-1], -1)
    # Scaling the product instead of the weight saves a pass over [out, in].
    return F.linear(x, weight.to(x.dtype)) * scale


def choose_path(x: Tensor) -> Path:
    """The path for these activations, unless the environment forces one."""
    forced = os.environ.get(FORCE_VARIABLE)
    if forced is not None:
        if forced == "int8pack" and x.shape[-1] % INT8PACK_COLUMNS:
            raise ConfigError(
                f"{FORCE_VARIABLE} = 'int8pack' needs a multiple of {INT8PACK_COLUMNS} columns, not {x.shape[-1]}",
                "Unset it or force another path",
            )
        return _forced(forced)
    differentiable = x.requires_grad and torch.is_grad_enabled()
    few = 0 < x.numel() <= INT8PACK_MAX_ROWS * x.shape[-1] and x.shape[-1] % INT8PACK_COLUMNS == 0
    fast = few and x.dtype == torch.bfloat16 and x.device.type == "cpu" and _MEASURED and not differentiable
    return _log("int8pack" if fast else "dequantize", x.dtype, x.device.type)


_MEASURED = platform.machine() in ("x86_64", "AMD64")
"""Only here is `int8pack` known to be faster."""


@cache
def _log(path: Path, dtype: torch.dtype, device: str) -> Path:
    """Say each decision once."""
    logger.info("quantized matmul: %s for %s on %s (up to %d rows: int8pack)", path, dtype, device, INT8PACK_MAX_ROWS)
    return path


@cache
def _forced(name: str) -> Path:
    for path in PATHS:
        if path == name:
            logger.info("quantized matmul: %s, forced by %s", path, FORCE_VARIABLE)
            return path
    raise ConfigError(f"{FORCE_VARIABLE} = {name!r} is no path{nearest(name, list(PATHS))}", "Unset it or name a path")
