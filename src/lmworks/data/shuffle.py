"""Permutations that are a pure function of a seed and an epoch, the same on every machine and numpy version.

NumPy promises no stable stream for `Generator.permutation`, so the order is the order of mixed counters.
Knows nothing of what is permuted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection in which every output bit depends on every input bit: SplitMix64's finalizer (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """[count] the numbers 0..count-1 in an order that depends on `seed` and `epoch` alone."""
    key = mix(np.array([(seed * _GAMMA + 1) & _MASK], dtype=np.uint64))
    key = mix(key + np.uint64((epoch * _GAMMA) & _MASK))
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return np.argsort(mix(counters + key), kind="stable").astype(np.int64)
