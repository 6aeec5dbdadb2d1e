"""Multi-token prediction: at every place also the token after the next one, and so on (DeepSeek-V3, arXiv:2412.19437).

Independent heads (arXiv:2404.19737) are the case whose `further` takes no notice of the tokens it is given. Knows no
trainer and no model class.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.causal_lm import CausalLM, token_loss
from lmworks.objectives.loss import Loss


class MultiTokenLM(CausalLM, Protocol):
    """A causal model that looks further ahead."""

    @property
    def num_nextn_predict_layers(self) -> int:
        """How many tokens after the next one it predicts."""
        ...

    def further(
        self, depth: int, hidden: Tensor, next_ids: Tensor, positions: Tensor, context: AttentionContext, /
    ) -> Tensor:
        """What the head multiplies to predict one token further.

        Args:
            depth: from 0.
            hidden: [N, E] of the depth before, or of the model itself.
            next_ids: [N] the token that `hidden` was to predict.
            positions: [N].
            context: how attention reaches keys and values.

        Returns:
            [N, E].
        """
        ...


def multi_token(model: MultiTokenLM, batch: Batch, *, mtp_loss_weight: float = 0.3, z_loss: float = 0.0) -> Loss:
    """The next-token loss, and `mtp_loss_weight` times the mean over depths of the losses further ahead, in nats.

    All are sums over the next token's count, as in the paper. A place whose document ends before the token that
    it should predict has nothing to predict there; being last, it is seen by no other place of a causal model.

    Args:
        model: looks further ahead.
        batch: packed documents.
        mtp_loss_weight: 0.3, later 0.1 in the paper.
        z_loss: of the next token's loss; see `linear_cross_entropy`.

    Returns:
        The sum, the count, and each depth's loss as metrics "mtp_loss_1", "mtp_loss_2", ...
    """
    context = PackedContext(batch.cu_seqlens)
    hidden = model(batch.input_ids, batch.positions, context)
    loss = token_loss(model, hidden, batch.targets, batch.loss_weights, z_loss=z_loss)
    here = torch.arange(batch.num_tokens, device=batch.input_ids.device)
    last = torch.repeat_interleave(batch.cu_seqlens[1:], batch.cu_seqlens.diff(), output_size=batch.num_tokens) - 1
    metrics = {}
    for depth in range(model.num_nextn_predict_layers):
        ahead = torch.minimum(here + depth + 1, last)
        weights = batch.loss_weights[ahead] * (here + depth + 1 <= last)
        hidden = model.further(depth, hidden, batch.input_ids[ahead], batch.positions, context)
        further = token_loss(model, hidden, batch.targets[ahead], weights)
        metrics[f"mtp_loss_{depth + 1}"] = further.detach()
        loss = loss + mtp_loss_weight / model.num_nextn_predict_layers * further
    return Loss(loss, batch.loss_weights.sum(), metrics)
