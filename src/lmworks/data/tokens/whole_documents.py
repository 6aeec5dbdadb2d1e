"""Rows of whole documents, for objectives that have to see both ends of one.

A row holds the documents that begin in its stretch of the endless stream of `packing.py`, so rows differ in length,
no document is in two of them, and in an epoch each document comes once. Knows no objective.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lmworks.data.tokens.packing import PackedRows
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
        lengths = [len(ids) for ids in documents]
        empty = [np.empty(0, np.int64)]
        input_ids = np.concatenate(empty + documents)
        following = np.concatenate(empty + [np.append(ids[1:], ids[-1]) for ids in documents])
        cu_seqlens = np.cumsum([0, *lengths])
        weights = np.ones(len(input_ids), np.float32)
        weights[cu_seqlens[1:] - 1] = 0.0
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            positions=torch.from_numpy(np.concatenate(empty + [np.arange(length) for length in lengths])),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            targets=torch.from_numpy(following),
            loss_weights=torch.from_numpy(weights),
        )

    def documents(self, row: int) -> list[str]:
        """The number in the store of each document in a row, in their order."""
        return [str(document) for document, _ in self._beginning_in(row)]

    def _beginning_in(self, row: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        width = self.sequence_length
        for document, begin, _ in self._segments(row * width, (row + 1) * width):
            if begin == 0:
                yield document, self._store[document][:width].astype(np.int64)
