"""Contrastive losses: what belongs together is near, and what only came along is far. Knows no trainer.

The vectors a pair is compared with are those of its group, which is the batch unless said otherwise. Sums over
micro-batches are the same for any split that keeps groups whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import DataError
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""`(left [P, E], right [P, E])` -> the sum over P pairs, such as `info_nce` with its temperature."""


class Embedder(Protocol):
    """A model with a vector per document."""

    def __call__(self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /) -> Tensor:
        """Hidden states [N, E]."""
        ...

    def embed_documents(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[N, E] -> [D, E]."""
        ...


def info_nce(left: Tensor, right: Tensor, *, temperature: Tensor | float = 0.05, symmetric: bool = True) -> Tensor:
    """Σ -log of the share of a pair among all that its sides could have been paired with (arXiv:1807.03748).

    Args:
        left: [P, E] of length one.
        right: [P+H, E] of length one; the first P belong to `left`, the others are further negatives for it.
        temperature: divides the cosines; a tensor may be trained (CLIP).
        symmetric: the mean of both directions (CLIP, arXiv:2103.00020); otherwise from left to right alone.

    Returns:
        Scalar float32, the sum over P pairs.
    """
    scores = left.float() @ right.float().mT / temperature
    own = torch.arange(len(left), device=left.device)
    loss = F.cross_entropy(scores, own, reduction="sum")
    if symmetric:
        loss = (loss + F.cross_entropy(scores[:, : len(left)].mT, own, reduction="sum")) / 2
    return loss


def siglip(left: Tensor, right: Tensor, *, scale: Tensor | float = 10.0, bias: Tensor | float = -10.0) -> Tensor:
    """Σ over all P² combinations of -log σ(±(scale · cosine + bias)), + for pairs (SigLIP, arXiv:2303.15343).

    Args:
        left: [P, E] of length one.
        right: [P, E] of length one.
        scale: multiplies the cosines; a tensor may be trained, as the paper does from 10.
        bias: added to them; the paper trains it from -10, as nearly all combinations are no pairs.

    Returns:
        Scalar float32; the paper divides it by P.
    """
    scores = scale * (left.float() @ right.float().mT) + bias
    sign = 2 * torch.eye(len(left), device=left.device) - 1
    return -F.logsigmoid(sign * scores).sum()


def contrastive(model: Embedder, batch: Batch, *, loss: PairLoss = info_nce, group_pairs: int | None = None) -> Loss:
    """The loss of neighboring documents, 2i and 2i+1, as pairs.

    Args:
        model: gives documents vectors, which are brought to length one.
        batch: an even number of documents; targets are not used.
        loss: `info_nce` or `siglip`, configured with `functools.partial`.
        group_pairs: so many consecutive pairs are compared with each other; None: all of the batch.

    Returns:
        The sum over pairs, their number, and the metric "accuracy": left sides whose nearest right side is their own.

    Raises:
        DataError: documents do not come in pairs, or pairs in whole groups.
    """
    documents = len(batch.cu_seqlens) - 1
    size = group_pairs or max(1, documents // 2)
    if documents % (2 * size):
        raise DataError(
            f"a batch of {documents} documents does not hold whole groups of {size} pairs",
            "Give documents in pairs, and micro-batches of whole groups",
        )
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    vectors = F.normalize(model.embed_documents(hidden, batch.cu_seqlens).float(), dim=-1)
    total = vectors.new_zeros(())
    nearest = vectors.new_zeros(())
    for group in torch.split(vectors, 2 * size):
        left, right = group[0::2], group[1::2]
        total = total + loss(left, right)
        nearest += ((left @ right.mT).detach().argmax(1) == torch.arange(size, device=left.device)).sum()
    return Loss(total, vectors.new_tensor(documents // 2), {"accuracy": nearest})
