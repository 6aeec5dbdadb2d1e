"""The loss contract and the batch layout: accumulation changes nothing, packed documents do not see each other."""

from __future__ import annotations

import torch
from torch import Tensor

from lmworks.kernels.attention import varlen_attention
from lmworks.kernels.scores import Scores
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import Batch, next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import TINY, random_tokens, tiny_model
from lmworks.train.step import WorkingCopy, accumulate_gradients, finish_gradients

LENGTHS = (13, 40, 5, 28, 61, 9, 33, 17)
"""Documents of unequal length, so that a mean of means would differ from the mean."""


def gradient_rows(seed: int = 0) -> list[Row]:
    """Accumulation and packing, on tiny models of every family."""
    rows = []
    for family in TINY:
        documents = [random_tokens(n, seed + i) for i, n in enumerate(LENGTHS)]
        model = tiny_model(family, seed)
        rows.append(Row(f"accumulation, {family}: max relative Δ gradient", accumulation_gap(model, documents), 1e-6))
        rows.append(Row(f"packing, {family}: max |Δ logit| to one by one", packing_gap(model, documents), 1e-5))
        leak = packing_gap(model, documents, _LeakyContext)
        rows.append(Row(f"packing, {family}: a planted leak moves logits by", leak, 1e-2, ">="))
    return rows


def accumulation_gap(model: Transformer, documents: list[list[int]]) -> float:
    """Largest relative difference of the gradient over all ways to split the documents into micro-batches."""
    whole = _gradient(model, documents, len(documents))
    scale = float(whole.norm())
    splits = [size for size in range(1, len(documents)) if len(documents) % size == 0 or size == 3]
    return max(float((_gradient(model, documents, size) - whole).norm()) / scale for size in splits)


def _gradient(model: Transformer, documents: list[list[int]], size: int) -> Tensor:
    """All gradients as one vector, with `size` documents in a micro-batch."""
    model.zero_grad()
    batches = [_batch(documents[i : i + size]) for i in range(0, len(documents), size)]
    totals = accumulate_gradients(WorkingCopy(model, torch.float32), causal_lm, batches, "the proof")
    finish_gradients(model, totals.n_targets, None)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@torch.no_grad()
def packing_gap(model: Transformer, documents: list[list[int]], context: type[PackedContext] = PackedContext) -> float:
    """Largest |Δ logit| between documents in one batch and each alone."""
    together = _logits(model, _batch(documents), context)
    alone = torch.cat([_logits(model, _batch([d]), PackedContext) for d in documents])
    return float((together - alone).abs().max())


def _logits(model: Transformer, batch: Batch, context: type[PackedContext]) -> Tensor:
    return model.logits(model(batch.input_ids, batch.positions, context(batch.cu_seqlens)))


def _batch(documents: list[list[int]]) -> Batch:
    return pack([next_token_document(d) for d in documents])


class _LeakyContext(PackedContext):
    """The mistake a packed batch invites: one causal mask over all documents."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        bounds = self.cu_seqlens[[0, -1]]
        return varlen_attention(query, key, value, bounds, scores)
