"""Next-token prediction over packed documents. Knows no trainer and no model class."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

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


@runtime_checkable
class DividedHead(Protocol):
    """A head whose vocabulary is spread over processes, and which therefore takes the loss itself."""

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, loss_weights: Tensor, *, softcap: float | None = None,
        z_loss: float = 0.0, label_smoothing: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """See `linear_cross_entropy`."""
        ...

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V], gathered."""
        ...


class LanguageHead(Protocol):
    """What the loss of a token needs of a model, given hidden states."""

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


class CausalLM(LanguageHead, Protocol):
    """A model of one stack with a head."""

    def __call__(self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /) -> Tensor:
        """Hidden states [N, E]."""
        ...


def causal_lm(model: CausalLM, batch: Batch, *, z_loss: float = 0.0, label_smoothing: float = 0.0) -> Loss:
    """Σ weight · -log p(target | the tokens before it in its document), in nats.

    Args:
        model: gives hidden states and holds the head.
        batch: packed documents; `loss_weights` say which targets count.
        z_loss: see `linear_cross_entropy`.
        label_smoothing: see `linear_cross_entropy`.
    """
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    return batch_loss(model, hidden, batch, z_loss=z_loss, label_smoothing=label_smoothing)


def batch_loss(
    model: LanguageHead, hidden: Tensor, batch: Batch, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> Loss:
    """`token_loss` of all targets of a batch, with their count."""
    loss = token_loss(
        model, hidden, batch.targets, batch.loss_weights, z_loss=z_loss, label_smoothing=label_smoothing
    )  # fmt: skip
    return Loss(loss, batch.loss_weights.sum())


def whole_head(head: Head) -> tuple[Tensor, Tensor | None]:
    """Weight [V, E] and bias [V] of a head, gathered where it is spread over processes."""
    return head.whole() if isinstance(head, DividedHead) else (head.weight, head.bias)


def token_loss(
    model: LanguageHead, hidden: Tensor, targets: Tensor, loss_weights: Tensor, *, z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Σ weight · -log p(target | hidden state), a scalar, through the whole of the model's head."""
    head, hidden = model.lm_head, model.before_head(hidden)
    if isinstance(head, DividedHead):
        return head.cross_entropy(
            hidden, targets, loss_weights, softcap=model.logit_softcap, z_loss=z_loss, label_smoothing=label_smoothing
        )
    return linear_cross_entropy(
        hidden, head.weight, targets, loss_weights, bias=head.bias, softcap=model.logit_softcap,
        z_loss=z_loss, label_smoothing=label_smoothing,
    )  # fmt: skip
