"""What all Triton kernels share: whether they can run here, and in which types. Knows no operation.

May be imported without Triton.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

MOST_WIDTH = 256
"""Of an attention head at most: the tiles of wider ones do not fit into a processor."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of activations and caches."""
LEAST_CAPABILITY = (8, 0)
"""Of GPUs that the kernels are compiled for in tests: the first with bfloat16 and asynchronous copies."""


@cache
def interpreted() -> bool:
    """Whether kernels run line by line on the CPU (`TRITON_INTERPRET=1`, set before Triton is imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def available() -> bool:
    """Whether kernels can run on this machine's GPU."""
    if not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability() >= LEAST_CAPABILITY


def fuses(x: Tensor) -> bool:
    """Whether kernels that only save passes over memory take these activations.

    They have no backward pass, and where `torch.compile` writes kernels it fuses more than they do.
    """
    if not x.is_cuda or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return x.dtype in TYPES and available()


def product_type(dtype: torch.dtype) -> Any:
    """The type in which matrix products take their operands; sums are float32.

    The interpreter has no products of bfloat16.
    """
    import triton.language as tl

    if interpreted() and dtype == torch.bfloat16:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)


def next_power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(0, number - 1).bit_length()
