"""Rows of exactly `sequence_length` tokens cut from an endless, shuffled stream of documents.

Everything is a pure function of the seed and the row's number, so training resumes from a step number
alone and any worker can make any row. Documents stay apart: a document cut at a row's end goes on as a
segment of its own in the next row. Knows no model, no trainer and no file format.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.data.shuffle import permutation
from lmworks.nn.batch import Batch


class Store(Protocol):
    """What packing needs of a token store."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each document."""
        ...

    def __getitem__(self, index: int, /) -> NDArray[np.unsignedinteger]:
        """Token ids of one document."""
        ...


class PackedRows:
    """Row `r` of the stream is its tokens `[r*T, (r+1)*T)`, `T` being `sequence_length`.

    The stream is epoch after epoch of all documents, each epoch in an order of its own, with no gap
    anywhere. The target of a token is the next token of its document, also across a row's end; a
    document's last token has nothing to predict and weight 0.

    Args:
        store: the documents, none of them empty.
        sequence_length: tokens in a row.
        seed: chooses the order of the documents.

    Raises:
        DataError: there is no document.
    """

    def __init__(self, store: Store, sequence_length: int, seed: int) -> None:
        assert sequence_length > 0, "a row needs at least one token"
        self._store, self._lengths, self._seed = store, store.lengths, seed
        self.sequence_length = sequence_length
        self.tokens_per_epoch = int(self._lengths.sum())
        if self.tokens_per_epoch == 0:
            raise DataError("the token store holds no documents", "Prepare and tokenize a corpus that is not empty")
        self._orders: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()

    @property
    def rows_per_epoch(self) -> float:
        """How many rows one pass over the documents fills."""
        return self.tokens_per_epoch / self.sequence_length

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1` as one batch of `count * sequence_length` tokens."""
        assert start >= 0, "rows are counted from 0"
        assert count > 0, "a batch holds at least one row"
        width = self.sequence_length
        size = count * width
        input_ids, targets = np.empty(size, np.int64), np.empty(size, np.int64)
        weights, lengths = np.ones(size, np.float32), []
        filled = 0
        for document, begin, end in self._segments(start * width, (start + count) * width):
            ids = self._store[document]
            while begin < end:  # one piece for each row that the document runs through
                length = min(end - begin, width - filled % width)
                place = slice(filled, filled + length)
                input_ids[place] = ids[begin : begin + length]
                following = ids[begin + 1 : begin + length + 1]
                targets[filled : filled + len(following)] = following
                if len(following) < length:  # the document ends here: any valid id will do
                    targets[filled + length - 1] = ids[-1]
                    weights[filled + length - 1] = 0.0
                lengths.append(length)
                begin, filled = begin + length, filled + length
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(size) - np.repeat(cu_seqlens[:-1], lengths)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            positions=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            targets=torch.from_numpy(targets),
            loss_weights=torch.from_numpy(weights),
        )

    def documents(self, row: int) -> list[str]:
        """The number in the store of each document in a row, in their order."""
        width = self.sequence_length
        return [str(document) for document, _, _ in self._segments(row * width, (row + 1) * width)]

    def _segments(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """`(document, begin, end)` for each piece of a document inside the stream's `[start, end)`."""
        while start < end:
            epoch, offset = divmod(start, self.tokens_per_epoch)
            order, ends = self._order(epoch)
            rank = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[rank])
            begin = offset - (int(ends[rank - 1]) if rank else 0)
            length = min(int(ends[rank]) - offset, end - start)
            yield document, begin, begin + length
            start += length

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What `_new_order` makes, kept for a while."""
        if epoch not in self._orders:
            self._orders[epoch] = self._new_order(epoch)
            if len(self._orders) > 2:  # a batch may straddle two epochs, never three in practice
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _new_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The documents' order in an epoch and the cumulative ends of their lengths in that order."""
        order = permutation(len(self._lengths), self._seed, epoch)
        return order, np.cumsum(self._lengths[order])


def batch_of(pieces: Sequence[tuple[NDArray[np.unsignedinteger], int, int]]) -> Batch:
    """A batch of parts of documents, each a segment of its own.

    Args:
        pieces: a document's ids, and from where to where they are taken. The target of the last one taken is the
            document's next; where it has none, any valid id will do, with weight 0.
    """
    empty = [np.empty(0, np.int64)]
    input_ids = np.concatenate([*empty, *(ids[begin:end] for ids, begin, end in pieces)])
    targets = [ids[begin + 1 : end + 1] for ids, begin, end in pieces]
    ended = [end == len(ids) for ids, _, end in pieces]
    targets = [np.append(t, ids[-1]) if e else t for t, e, (ids, _, _) in zip(targets, ended, pieces, strict=True)]
    lengths = np.array([end - begin for _, begin, end in pieces], np.int64)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    weights = np.ones(len(input_ids), np.float32)
    weights[cu_seqlens[1:][ended] - 1] = 0.0
    return Batch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        positions=torch.from_numpy(np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], lengths)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        targets=torch.from_numpy(np.concatenate([*empty, *targets]).astype(np.int64)),
        loss_weights=torch.from_numpy(weights),
    )
