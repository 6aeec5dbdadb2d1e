"""How near a running engine comes to what memory allows: bytes that its steps must read, against the machine's speed.

Decoding reads every weight once a step and every held key and value, so `bytes / bandwidth` is the least a step can
take (Williams et al., 2009). A step that computes long prompts is bound by arithmetic and lies lower. Knows no request.
"""

from __future__ import annotations


class Roofline:
    """The share of the limit reached since it was last asked for.

    Args:
        weight_bytes: read by every step.
        cache_bytes: of the whole cache of keys and values.
        bandwidth: bytes a second that can be read.
    """

    def __init__(self, weight_bytes: int, cache_bytes: int, bandwidth: float) -> None:
        self._weights, self._cache, self._bandwidth = weight_bytes, cache_bytes, bandwidth
        self._steps, self._seconds = 0, 0.0
        self._ratio = 0.0

    def add(self, seconds: float) -> None:
        """A step took so long."""
        self._steps += 1
        self._seconds += seconds

    def ratio(self, cache_usage: float) -> float:
        """Share of the limit, 0 to about 1, since the last call; 0 when nothing ran.

        Args:
            cache_usage: share of the cache that is held now, taken for what each step read.
        """
        if self._steps:
            least = self._steps * (self._weights + cache_usage * self._cache) / self._bandwidth
            self._ratio = least / self._seconds
        else:
            self._ratio = 0.0
        self._steps, self._seconds = 0, 0.0
        return self._ratio
