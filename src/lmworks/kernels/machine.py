"""What this machine gives the native operations: threads, and how fast it reads memory. Knows no operation."""

from __future__ import annotations

import ctypes
from time import perf_counter

import torch

from lmworks.kernels.native.library import library

PROBE_BYTES = 256 * 2**20
"""More than caches hold."""
PROBE_ROUNDS = 4


def set_threads(count: int) -> None:
    """Let native operations use so many threads, the caller's included; without them, let torch."""
    native = library()
    if native is None:
        torch.set_num_threads(count)
    else:
        native.lm_set_threads(ctypes.c_int(count))


def num_threads() -> int:
    """Threads that native operations use, or torch where there are none."""
    native = library()
    return torch.get_num_threads() if native is None else int(native.lm_threads())


@torch.inference_mode()
def read_bandwidth(size: int = PROBE_BYTES, rounds: int = PROBE_ROUNDS) -> float:
    """Bytes a second that all threads together read from memory, the best of a few passes.

    Args:
        size: bytes read in one pass.
        rounds: passes.
    """
    native = library()
    if native is not None:
        probe = native.lm_read_bandwidth
        probe.restype, probe.argtypes = ctypes.c_double, [ctypes.c_int64, ctypes.c_int]
        return float(probe(size, rounds))
    array = torch.zeros(size // 4)
    best = float("inf")
    for _ in range(rounds):
        began = perf_counter()
        array.sum()
        best = min(best, perf_counter() - began)
    return size / best
