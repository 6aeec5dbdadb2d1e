"""Rows of whole documents, for objectives that have to see both ends of one.

A row holds the documents that begin in its stretch of the endless stream of `packing.py`, so rows differ in length,
no document is in two of them, and in an epoch each document comes once. Knows no objective.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lmworks.data.tokens.packing import PackedRows, batch_of
from lmworks.nn.batch import Batch


class WholeDocuments(PackedRows):
    """Rows of about `sequence_length` tokens, and of nothing where a long document began in an earlier row.

    Of a document longer than `sequence_length` that many tokens are taken. Targets and weights as in `PackedRows`.
    """

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1` as one batch."""
        assert start >= 0, "rows are counted from 0"
        assert count > 0, "a batch holds at least one row"
        documents = [ids for row in range(start, start + count) for _, ids in self._beginning_in(row)]
        return batch_of([(ids, 0, len(ids)) for ids in documents])

    def documents(self, row: int) -> list[str]:
        """The number in the store of each document in a row, in their order."""
        return [str(document) for document, _ in self._beginning_in(row)]

    def _beginning_in(self, row: int) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
        width = self.sequence_length
        for document, begin, _ in self._segments(row * width, (row + 1) * width):
            if begin == 0:
                yield document, self._store[document][:width]
