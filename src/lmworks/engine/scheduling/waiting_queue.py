"""Sequences that wait, in the order in which they are to run. Knows no cache."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from lmworks.engine.scheduling.sequence import Sequence


class WaitingQueue:
    """Sorted by `Sequence.order`, so that a preempted sequence stands before all that arrived after it."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self.num_tokens = 0
        """That are to be computed for all of them."""
        self.num_requests = 0
        """Counted once each, however many completions they ask for."""

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in its place; its tokens must not change while it waits."""
        insort(self._sequences, sequence, key=_order)
        self._count(sequence, 1)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out."""
        at = bisect_left(self._sequences, sequence.order, key=_order)
        assert self._sequences[at] is sequence, "it does not wait"
        del self._sequences[at]
        self._count(sequence, -1)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, at: int) -> Sequence:
        return self._sequences[at]

    def _count(self, sequence: Sequence, sign: int) -> None:
        if sequence.leader is None:
            self.num_requests += sign
            self.num_tokens += sign * len(sequence.token_ids)


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
