"""Memory that a step frees stays with the process for the next step. Knows no tensors.

glibc gives large blocks back to the system as soon as they are free, and the system hands out pages filled with zeros:
a step that allocates what the last one freed pays for every page again. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's names of parameters of `mallopt`."""
LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""What glibc takes at most. Larger blocks still come from the system."""
NEVER = 2**31 - 1
TRIMMED_BY_DEFAULT = 2 * LARGEST_MMAP_THRESHOLD
"""What glibc arrives at by itself once a block of the largest size was freed."""


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Inside the block freed memory is kept; after it, what is free goes back."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, TRIMMED_BY_DEFAULT)
        libc.malloc_trim(0)
