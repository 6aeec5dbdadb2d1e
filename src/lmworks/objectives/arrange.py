"""From documents to the batch that an objective wants: what arrangements share, and rows made by one of them.

An arrangement is a pure function of a row's documents and its draws. Batches of rows are joined, so it does not
matter how many rows are made at one time. Knows no objective, no model and where documents come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmworks.core.errors import DataError
from lmworks.nn.batch import Batch
from lmworks.objectives.draws import Draws

TokenIds = NDArray[np.int64]
Documents = Sequence[TokenIds]
B = TypeVar("B", bound=Batch)
Arrangement = Callable[[Documents, Draws], Batch]
"""What a row's documents become. Documents that are too short to hold a target may be left out."""


class Rows(Protocol):
    """Documents as a pure function of the row's number, such as `data.packing.PackedRows`."""

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1`, packed."""
        ...


class ArrangedRows:
    """Each row of `source`, arranged for an objective by f(seed, row number).

    Args:
        source: gives documents; of its batches the inputs and bounds are used.
        arrangement: what a row becomes; configured with `functools.partial`.
        seed: of everything that is drawn.
    """

    def __init__(self, source: Rows, arrangement: Arrangement, seed: int) -> None:
        self.source, self._arrangement, self._seed = source, arrangement, seed

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1` as one batch.

        Raises:
            DataError: none of their documents is long enough to hold a target.
        """
        numbers = range(start, start + count)
        made = [self._arrangement(documents_of(self.source.rows(r, 1)), Draws(self._seed, r)) for r in numbers]
        whole = join(made)
        if not whole.num_tokens:
            raise DataError(
                f"rows {start} to {start + count - 1} hold no document that is long enough to hold a target",
                "Take longer rows, or leave documents of a few tokens out",
            )
        return whole


def documents_of(batch: Batch) -> list[TokenIds]:
    """The token ids of each document of a batch on the CPU."""
    return np.split(batch.input_ids.numpy(), batch.cu_seqlens[1:-1].numpy())


def packed(
    kind: type[B], inputs: Documents, targets: Documents, loss_weights: Sequence[NDArray[Any]], **extra: Tensor
) -> B:
    """Lay documents end to end.

    Args:
        kind: the batch to make.
        inputs: token ids of each document.
        targets: as long as its inputs.
        loss_weights: as long as its inputs.
        **extra: what `kind` holds besides.
    """
    assert all(len(i) == len(t) == len(w) for i, t, w in zip(inputs, targets, loss_weights, strict=True))
    lengths = [len(ids) for ids in inputs]
    return kind(
        input_ids=laid_out(inputs),
        positions=places(lengths),
        cu_seqlens=bounds(lengths),
        targets=laid_out(targets),
        loss_weights=laid_out(loss_weights, np.float32),
        **extra,
    )


def laid_out(pieces: Sequence[NDArray[Any]], dtype: type[np.generic] = np.int64) -> Tensor:
    """[N] all numbers end to end."""
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *pieces]).astype(dtype))


def bounds(lengths: Sequence[int]) -> Tensor:
    """[D+1] int32 cumulative lengths, from 0."""
    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))


def places(lengths: Sequence[int]) -> Tensor:
    """[N] int64 place of each token in its document."""
    return laid_out([np.arange(n) for n in lengths])


def join(batches: Sequence[B]) -> B:
    """Batches of one kind end to end: tensors are concatenated, and bounds of documents go on counting."""
    kind = type(batches[0])
    joined: dict[str, Tensor] = {}
    for name in (f.name for f in fields(kind)):
        parts: list[Tensor] = [getattr(batch, name) for batch in batches]
        if name.endswith("cu_seqlens"):
            sizes = torch.cat([part.diff() for part in parts])
            joined[name] = torch.cat([sizes.new_zeros(1), sizes.cumsum(0, dtype=sizes.dtype)])
        else:
            joined[name] = torch.cat(parts)
    return kind(**joined)
