"""Next-token prediction over packed documents. Knows no trainer and no model class."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lmworks.kernels.linear_cross_entropy import linear_cross_entropy
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss


class Weighted(Protocol):
    """Something with a weight matrix, such as `nn.Linear`."""

    @property
    def weight(self) -> Tensor:
        """[V, E]."""
        ...


class CausalLM(Protocol):
    """What the objective needs of a model."""

    @property
    def lm_head(self) -> Weighted:
        """Maps hidden states to the vocabulary."""
        ...

    def __call__(self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /) -> Tensor:
        """Hidden states [N, E]."""
        ...


def causal_lm(model: CausalLM, batch: Batch) -> Loss:
    """Σ weight · -log p(target | the tokens before it in its document), in nats.

    Args:
        model: gives hidden states and holds the head's weight.
        batch: packed documents; `loss_weights` say which targets count.
    """
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    loss_sum = linear_cross_entropy(hidden, model.lm_head.weight, batch.targets, batch.loss_weights)
    return Loss(loss_sum, batch.loss_weights.sum())
