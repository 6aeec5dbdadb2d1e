"""The one batch layout: documents laid end to end, with their boundaries. Padding does not exist here.

Tensor legend: `N` packed tokens, `D+1` document boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Packed tokens of several documents, and what is to be predicted at each."""

    input_ids: Tensor
    """[N] int64."""
    positions: Tensor
    """[N] int64, the place of each token in its own document."""
    cu_seqlens: Tensor
    """[D+1] int32, cumulative document lengths, from 0 to N."""
    targets: Tensor
    """[N] int64, the token each place has to predict; any valid id where the weight is 0."""
    loss_weights: Tensor
    """[N] float32; 0 where nothing is to be predicted."""

    token_fields: ClassVar[tuple[str, ...]] = ("input_ids", "positions", "targets", "loss_weights")
    """Fields with one entry a token, by which some of the tokens can be taken. A batch of another kind adds its own
    where its objective asks no more of a document than its tokens."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return type(self)(**{name: t.to(device, non_blocking=True) for name, t in self.__dict__.items()})

    @classmethod
    def document_fields(cls) -> tuple[str, ...]:
        """Fields that say something of whole documents, beside their bounds; a batch that has any cannot be cut."""
        return tuple(f.name for f in fields(cls) if f.name not in (*cls.token_fields, "cu_seqlens"))

    def take(self, indices: Tensor, cu_seqlens: Tensor) -> Self:
        """Some of the tokens, with all that is known of each.

        Args:
            indices: [n] int64, in the order of the result.
            cu_seqlens: [pieces+1] int32 bounds of the pieces of documents, from 0 to n; positions need not begin at 0.
        """
        assert not self.document_fields(), f"{self.document_fields()} are of whole documents"
        taken = {name: getattr(self, name).index_select(0, indices) for name in self.token_fields}
        return type(self)(cu_seqlens=cu_seqlens, **taken)


def pack(documents: Sequence[tuple[Sequence[int], Sequence[int], Sequence[float]]]) -> Batch:
    """Lay documents end to end.

    Args:
        documents: `(input_ids, targets, loss_weights)` of equal length for each document, none empty.
    """
    lengths = [len(ids) for ids, _, _ in documents]
    assert min(lengths, default=0) > 0, "a batch needs at least one document and none may be empty"
    assert all(len(i) == len(t) == len(w) for i, t, w in documents), "ids, targets and weights must align"
    return Batch(
        input_ids=torch.tensor([i for ids, _, _ in documents for i in ids], dtype=torch.int64),
        positions=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        targets=torch.tensor([t for _, targets, _ in documents for t in targets], dtype=torch.int64),
        loss_weights=torch.tensor([w for _, _, weights in documents for w in weights], dtype=torch.float32),
    )


def next_token_document(
    token_ids: Sequence[int], weights: Sequence[float] | None = None
) -> tuple[Sequence[int], Sequence[int], Sequence[float]]:
    """A document for next-token prediction: `token_ids[1:]` are the targets, so its length is one less.

    Args:
        token_ids: at least two tokens.
        weights: per token, whether *it* is to be learnt (aligned with `token_ids`; the first is ignored).
    """
    assert len(token_ids) >= 2, "next-token prediction needs at least two tokens"
    return token_ids[:-1], token_ids[1:], list(weights[1:]) if weights is not None else [1.0] * (len(token_ids) - 1)
