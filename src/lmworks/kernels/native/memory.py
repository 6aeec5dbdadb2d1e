"""Memory for what is read from front to back at every step: weights. Knows neither kernels nor layouts.

On pages of 2 MiB a core reads a quarter faster than on pages of 4 KiB, and a small matrix fills no such page. Matrices
therefore lie one behind the other in slabs for which the kernel is asked for large pages; a slab lives as long as any
of its matrices.
"""

from __future__ import annotations

import mmap
import threading

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes of a cache line."""
PAGE = 2 << 20
SLAB = 32 * PAGE
LAZY = hasattr(mmap, "MADV_HUGEPAGE")
"""Whether pages can be asked for that come zeroed when they are first touched."""

_lock = threading.Lock()
_slab = torch.empty(0, dtype=torch.uint8)
"""What is left of the newest slab."""


def weight_memory(size: int) -> Tensor:
    """Uninitialized memory, [size] uint8, that begins on a cache line."""
    global _slab
    whole = -(-size // ALIGNMENT) * ALIGNMENT
    if whole > SLAB // 4:  # alone: it would leave too much of a slab unused
        return _mapped(whole)[:size]
    with _lock:
        if len(_slab) < whole:
            _slab = _mapped(SLAB)
        taken, _slab = _slab[:size], _slab[whole:]
    return taken


def zero_memory(size: int) -> Tensor:
    """Zeros, [size] uint8, on a cache line; where the system can, they take memory only as they are written to."""
    memory = _mapped(size)[:size]
    return memory if LAZY else memory.zero_()


def release_rest() -> None:
    """Let go of what is left of the newest slab, so that it goes when its matrices go."""
    global _slab
    with _lock:
        _slab = torch.empty(0, dtype=torch.uint8)


@torch.inference_mode(False)
def _mapped(size: int) -> Tensor:
    """Memory of its own on large pages where the system has them; pages that are never written take none.

    Never an inference tensor, whoever asks first: the rest of a slab goes to others, who may write to theirs anywhere.
    """
    if not LAZY:
        memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
        return memory[-memory.data_ptr() % ALIGNMENT :][:size]
    mapped = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    return memory[-memory.data_ptr() % PAGE :][:size]
