"""How near a running engine comes to what memory allows: bytes that its steps must read, against the machine's speed.

Decoding reads every weight once a step and every held key and value, so `bytes / bandwidth` is the least a step can
take (Williams et al., 2009). A step that computes long prompts is bound by arithmetic and lies lower. Knows no request.
"""

from __future__ import annotations

from collections.abc import Callable


class Roofline:
    """The share of the limit reached since it was last asked for.

    Args:
        weight_bytes: read by every step.
        cache_bytes: of the whole cache of keys and values.
        probe: measures how many bytes a second can be read.
    """

    def __init__(self, weight_bytes: int, cache_bytes: int, probe: Callable[[], float]) -> None:
        self._weights, self._cache, self._probe = weight_bytes, cache_bytes, probe
        self._bandwidth: float | None = None
        self._steps, self._seconds = 0, 0.0
        self._ratio = 0.0

    def measure(self) -> None:
        """Learn the limit, at the first call; it takes some tenths of a second."""
        if self._bandwidth is None:
            self._bandwidth = self._probe()

    def add(self, seconds: float) -> None:
        """A step took so long."""
        self._steps += 1
        self._seconds += seconds

    def ratio(self, cache_usage: float) -> float:
        """Share of the limit, 0 to about 1, since the last call; 0 when nothing ran or the limit is not known yet.

        Args:
            cache_usage: share of the cache that is held now, taken for what each step read.
        """
        if self._steps and self._bandwidth:
            least = self._steps * (self._weights + cache_usage * self._cache) / self._bandwidth
            self._ratio = least / self._seconds
        else:
            self._ratio = 0.0
        self._steps, self._seconds = 0, 0.0
        return self._ratio
