"""Permutation language modeling (XLNet, arXiv:1906.08237): predict some tokens in a random order from all before them.

Knows no trainer and no model class; the order reaches attention as a `PermutedContext`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmworks.nn.batch import Batch
from lmworks.nn.permuted_context import PermutedContext
from lmworks.objectives.causal_lm import CausalLM, token_loss
from lmworks.objectives.loss import Loss


def draw_order(
    cu_seqlens: Tensor, predicted: float = 1 / 6, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """A random order of each document, whose last tokens are to be predicted and whose others are given.

    Args:
        cu_seqlens: [D+1] bounds of packed documents.
        predicted: share of a document that is predicted, rounded up; one token at least is given.
        generator: on the CPU; None draws from torch's global one.

    Returns:
        Ranks [N], 0 for what is given and 1, 2, ... in the order of prediction, and the ascending indices [T] of
        what is predicted: what `PermutedContext` takes.
    """
    sizes = cu_seqlens.cpu().long().diff()
    document = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    shuffled = (document + torch.rand(len(document), dtype=torch.float64, generator=generator)).argsort()
    given = (sizes - (sizes * predicted).ceil().long()).clamp(min=1)
    place = torch.arange(len(document)) - (sizes.cumsum(0) - sizes)[document]
    ranks = torch.empty_like(place)
    ranks[shuffled] = (place - given[document] + 1).clamp(min=0)
    ranks = ranks.to(cu_seqlens.device)
    return ranks, ranks.nonzero().squeeze(1)


def permutation_lm(
    model: CausalLM, batch: Batch, predicted: float = 1 / 6, *, generator: torch.Generator | None = None
) -> Loss:
    """Σ -log p(token | the tokens before it in a random order of its document), in nats.

    Args:
        model: with two streams; gives hidden states of what is predicted and holds the head.
        batch: packed documents, of which inputs and bounds are used.
        predicted: see `draw_order`.
        generator: see `draw_order`.
    """
    ranks, targets = draw_order(batch.cu_seqlens, predicted, generator=generator)
    hidden = model(batch.input_ids, batch.positions, PermutedContext(batch.cu_seqlens, ranks=ranks, targets=targets))
    weights = torch.ones(len(targets), device=hidden.device)
    return Loss(token_loss(model, hidden, batch.input_ids[targets], weights), weights.sum())
