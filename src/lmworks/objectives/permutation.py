"""Permutation language modeling (XLNet, arXiv:1906.08237): predict some tokens in a random order from all before them.

Knows no trainer and no model class; the order reaches attention as a `PermutedContext`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmworks.nn.batch import Batch
from lmworks.nn.permuted_context import PermutedContext
from lmworks.objectives.arrange import Documents, laid_out, packed
from lmworks.objectives.causal_lm import CausalLM, token_loss
from lmworks.objectives.draws import Draws
from lmworks.objectives.loss import Loss


@dataclass(frozen=True)
class PermutedBatch(Batch):
    """Packed documents, each with an order of prediction; inputs and targets are the same tokens."""

    ranks: Tensor
    """[N] int64: 0 for what is given, 1, 2, ... in the order of prediction; what `PermutedContext` takes."""


def draw_order(length: int, draws: Draws, predicted: float = 1 / 6) -> NDArray[np.int64]:
    """[T] ranks of a random order of a document, whose last tokens are to be predicted and whose others are given.

    Args:
        length: of the document.
        draws: of the row.
        predicted: share of the document that is predicted, rounded up; one token at least is given.
    """
    given = max(1, length - int(np.ceil(length * predicted)))
    ranks = np.empty(length, np.int64)
    ranks[draws.order(length)] = np.maximum(np.arange(length) - given + 1, 0)
    return ranks


def permute(documents: Documents, draws: Draws, predicted: float = 1 / 6) -> PermutedBatch:
    """Documents with an order each, see `draw_order`; those of a single token are left out."""
    documents = [ids for ids in documents if len(ids) > 1]
    ranks = [draw_order(len(ids), draws, predicted) for ids in documents]
    return packed(PermutedBatch, documents, documents, [r > 0 for r in ranks], ranks=laid_out(ranks))


def permutation_lm(model: CausalLM, batch: PermutedBatch, *, z_loss: float = 0.0) -> Loss:
    """Σ weight · -log p(token | the tokens before it in the order of its document), in nats.

    Args:
        model: with two streams; gives hidden states of what is predicted and holds the head.
        batch: of `permute`.
        z_loss: see `linear_cross_entropy`.
    """
    targets = batch.ranks.nonzero().squeeze(1)
    hidden = model(
        batch.input_ids, batch.positions, PermutedContext(batch.cu_seqlens, ranks=batch.ranks, targets=targets)
    )
    weights = batch.loss_weights[targets]
    return Loss(token_loss(model, hidden, batch.targets[targets], weights, z_loss=z_loss), weights.sum())
