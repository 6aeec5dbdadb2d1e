"""Rows into which whole documents are fitted, so that only those longer than a row are cut.

Best-fit decreasing ("Fewer Truncations Improve Language Modeling", arXiv:2404.10830): the longest first, each into the
row with the least room that is enough. How lengths go together is planned once; an epoch shuffles which documents of a
length take which places, and the rows. Knows no model and no trainer.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from lmworks.data.shuffle import permutation
from lmworks.data.tokens.packing import PackedRows, Store, batch_of
from lmworks.nn.batch import Batch

Piece = tuple[int, int, int]
"""A document, and from where to where it is taken."""


class BestFitRows(PackedRows):
    """Rows of at most `sequence_length` tokens, each a pure function of the seed and its number; as `PackedRows`.

    Every epoch has the same number of rows and each token once. A document longer than a row fills rows of its own, and
    its rest is fitted as a document is.
    """

    def __init__(self, store: Store, sequence_length: int, seed: int) -> None:
        super().__init__(store, sequence_length, seed)
        whole, rest = np.divmod(self._lengths, sequence_length)
        num_pieces = whole + (rest > 0)
        self._document = np.repeat(np.arange(len(num_pieces)), num_pieces)
        first = np.cumsum(num_pieces) - num_pieces
        self._begin = (np.arange(len(self._document)) - np.repeat(first, num_pieces)) * sequence_length
        self._length = np.minimum(self._lengths[self._document] - self._begin, sequence_length)
        row_of_place = best_fit_decreasing(np.bincount(self._length, minlength=sequence_length + 1))
        self._places = np.argsort(row_of_place, kind="stable")
        self._row_ends = np.cumsum(np.bincount(row_of_place))

    @property
    def rows_per_epoch(self) -> float:
        """How many rows one pass over the documents fills, all whole."""
        return len(self._row_ends)

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1` as one batch of at most `count * sequence_length` tokens."""
        assert start >= 0, "rows are counted from 0"
        assert count > 0, "a batch holds at least one row"
        pieces = [piece for row in range(start, start + count) for piece in self._pieces(row)]
        return batch_of([(self._store[document], begin, end) for document, begin, end in pieces])

    def documents(self, row: int) -> list[str]:
        """The number in the store of each document in a row, in their order."""
        return [str(document) for document, _, _ in self._pieces(row)]

    def _pieces(self, row: int) -> list[Piece]:
        epoch, number = divmod(row, len(self._row_ends))
        rows, pieces = self._order(epoch)
        number = int(rows[number])
        places = self._places[self._row_ends[number - 1] if number else 0 : self._row_ends[number]]
        chosen = pieces[places]
        begins = self._begin[chosen]
        ends = begins + self._length[chosen]
        return list(zip(self._document[chosen].tolist(), begins.tolist(), ends.tolist(), strict=True))

    def _new_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """An epoch's rows, by their numbers in the plan, and the piece in each place, the longest first."""
        shuffled = permutation(len(self._length), self._seed, epoch)
        pieces = shuffled[np.argsort(-self._length[shuffled], kind="stable")]
        return permutation(len(self._row_ends), ~self._seed, epoch), pieces


def best_fit_decreasing(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which row each piece goes to, the longest piece first.

    All pieces of a length are placed at once, so that the work grows with the number of different lengths.

    Args:
        counts: [room of a row + 1] how many pieces there are of each length; of length 0 none.

    Returns:
        [pieces] numbers of rows, from 0.
    """
    width, num_rows = len(counts) - 1, 0
    open_rows: dict[int, list[NDArray[np.int64]]] = {}
    rooms: list[int] = []
    """Of open rows, ascending."""
    placed = [np.empty(0, np.int64)]

    def leave_open(rows: NDArray[np.int64], room: int) -> None:
        if len(rows) and room:
            if room not in open_rows:
                insort(rooms, room)
            open_rows.setdefault(room, []).append(rows)

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            tightest = bisect_left(rooms, length)
            if tightest < len(rooms):
                room = rooms.pop(tightest)
                rows = np.concatenate(open_rows.pop(room))
            else:
                room, new = width, -(-left // (width // length))
                rows = np.arange(num_rows, num_rows + new)
                num_rows += new
            each = room // length  # a row that has taken one piece has the least room for the next of this length
            filled = rows[: left // each]
            placed.append(np.repeat(filled, each))
            leave_open(filled, room - each * length)
            left -= each * len(filled)
            rows = rows[len(filled) :]
            if left and len(rows):  # fewer than a row would take
                placed.append(np.repeat(rows[:1], left))
                leave_open(rows[:1], room - left * length)
                rows, left = rows[1:], 0
            leave_open(rows, room)
    return np.concatenate(placed)
