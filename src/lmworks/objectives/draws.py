"""Random numbers as a pure function of a seed and a row's number, the same on every machine.

Whatever an objective leaves to chance (which tokens to mask, where to cut) is drawn from here, so a run that was
resumed, or split over other workers, sees what the first one saw. NumPy promises a stable stream of raw bits
and no stable stream of distributions, so these are made here. Knows no objective.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Draws:
    """The random numbers of one row, one after another.

    Args:
        seed: of the run, below 2^64.
        row: number of the row, from 0.
    """

    def __init__(self, seed: int, row: int) -> None:
        self._bits = np.random.Philox(key=(row << 64) | seed)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """[count] in [0, 1), multiples of 2^-53."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * np.float64(2.0**-53)

    def chance(self, probability: float) -> bool:
        """True so often."""
        return bool(self.uniform(1)[0] < probability)

    def below(self, bound: int) -> int:
        """One of 0 ... bound-1."""
        return int(self.integers(bound, 1)[0])

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        """[count] of 0 ... bound-1."""
        assert bound > 0, "there is no number below 0"
        return (self.uniform(count) * bound).astype(np.int64)

    def order(self, count: int) -> NDArray[np.int64]:
        """[count] the numbers 0 ... count-1, shuffled."""
        return np.argsort(self.uniform(count), kind="stable")

    def choose(self, count: int, size: int) -> NDArray[np.int64]:
        """[size] different numbers of 0 ... count-1, ascending."""
        assert 0 <= size <= count, "no more can be chosen than there are"
        return np.sort(self.order(count)[:size])
