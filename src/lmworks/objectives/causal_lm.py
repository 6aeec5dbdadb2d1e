"""Next-token prediction over packed documents. Knows no trainer and no model class."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lmworks.kernels.linear_cross_entropy import linear_cross_entropy
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss


class Head(Protocol):
    """Something linear, such as `nn.Linear`."""

    @property
    def weight(self) -> Tensor:
        """[V, E]."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """[V]."""
        ...


class CausalLM(Protocol):
    """What the objective needs of a model."""

    @property
    def lm_head(self) -> Head:
        """Maps hidden states to the vocabulary."""
        ...

    @property
    def logit_softcap(self) -> float | None:
        """Bound of the logits."""
        ...

    def before_head(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, E], what the head multiplies."""
        ...

    def __call__(self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /) -> Tensor:
        """Hidden states [N, E]."""
        ...


def causal_lm(model: CausalLM, batch: Batch) -> Loss:
    """Σ weight · -log p(target | the tokens before it in its document), in nats.

    Args:
        model: gives hidden states and holds the head.
        batch: packed documents; `loss_weights` say which targets count.
    """
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    return Loss(token_loss(model, hidden, batch.targets, batch.loss_weights), batch.loss_weights.sum())


def token_loss(model: CausalLM, hidden: Tensor, targets: Tensor, loss_weights: Tensor) -> Tensor:
    """Σ weight · -log p(target | hidden state), a scalar, through the whole of the model's head."""
    head = model.lm_head
    return linear_cross_entropy(
        model.before_head(hidden), head.weight, targets, loss_weights, bias=head.bias, softcap=model.logit_softcap
    )
