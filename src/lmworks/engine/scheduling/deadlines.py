"""Requests that must be answered in time. Knows no clock and no engine."""

from __future__ import annotations

from heapq import heappop, heappush


class Deadlines:
    """Of unfinished requests; those that end before are only dropped when their time comes."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._of: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._of)

    def add(self, request_id: str, time: float) -> None:
        """Remember when a request is to be ended."""
        self._of[request_id] = time
        heappush(self._heap, (time, request_id))

    def remove(self, request_id: str) -> None:
        """Forget a request, if it had a deadline."""
        self._of.pop(request_id, None)
        if not self._of:
            self._heap.clear()

    def passed(self, now: float) -> list[str]:
        """Take out the requests whose time has come."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            time, request_id = heappop(self._heap)
            if self._of.get(request_id) == time:  # else it has ended, and the id may be another's by now
                del self._of[request_id]
                late.append(request_id)
        return late
