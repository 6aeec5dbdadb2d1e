"""Replaced-token detection: a small generator fills masks, the model says of every token whether it is the real one.

ELECTRA (arXiv:2003.10555). Knows no trainer and no model class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import Documents, laid_out, packed
from lmworks.objectives.causal_lm import CausalLM, Head, token_loss, whole_head
from lmworks.objectives.draws import Draws
from lmworks.objectives.loss import Loss
from lmworks.objectives.masked_lm import MaskingConfig, choose_tokens, corrupt


@dataclass(frozen=True)
class ReplacedTokenBatch(Batch):
    """Masked documents, and the chance by which the generator's tokens are sampled."""

    noise: Tensor
    """[N] float64 in [0, 1). A batch carries it so that no sample depends on what else is computed with it."""


class Discriminator(Protocol):
    """A model with one logit per token."""

    def __call__(self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /) -> Tensor:
        """Hidden states [N, E]."""
        ...

    def token_logits(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, 1]."""
        ...


class GeneratorAndDiscriminator(Protocol):
    """Two models that are trained together; they may share embeddings."""

    @property
    def generator(self) -> CausalLM:
        """An encoder with a head for masked tokens; small."""
        ...

    @property
    def discriminator(self) -> Discriminator:
        """The model that is kept."""
        ...


def mask_for_detection(documents: Documents, draws: Draws, config: MaskingConfig) -> ReplacedTokenBatch:
    """Masked documents with noise; of the shares in `config`, ELECTRA has `mask_replace_prob` 1."""
    chosen = [choose_tokens(ids, draws, config) for ids in documents]
    inputs = [corrupt(ids, where, draws, config) for ids, where in zip(documents, chosen, strict=True)]
    noise = laid_out([draws.uniform(len(ids)) for ids in documents], np.float64)
    return packed(ReplacedTokenBatch, inputs, documents, chosen, noise=noise)


def replaced_token_detection(
    model: GeneratorAndDiscriminator, batch: ReplacedTokenBatch, *, discriminator_weight: float = 50.0
) -> Loss:
    """Σ -log p(masked token) of the generator, and the discriminator's binary cross-entropy over all tokens.

    The paper adds a mean over masked tokens and `discriminator_weight` times a mean over all. As sums over one
    count, that of the masked tokens, the second is weighted in each document by its share of masked tokens.
    No gradient flows through the sampled tokens, as in the paper.

    Args:
        model: generator and discriminator.
        batch: of `mask_for_detection`.
        discriminator_weight: 50 in the paper.

    Returns:
        Besides the sum, its two parts as metrics: "generator_loss" and "discriminator_loss".
    """
    context = PackedContext(batch.cu_seqlens)
    hidden = model.generator(batch.input_ids, batch.positions, context)
    generator_loss = token_loss(model.generator, hidden, batch.targets, batch.loss_weights)
    sampled = fill_masks(model.generator, hidden, batch)
    logits = model.discriminator.token_logits(model.discriminator(sampled, batch.positions, context)).squeeze(1)
    replaced = (sampled != batch.targets).float()
    losses = F.binary_cross_entropy_with_logits(logits.float(), replaced, reduction="none")
    lengths = batch.cu_seqlens.diff().long()
    spread = partial(torch.repeat_interleave, repeats=lengths, output_size=batch.num_tokens)
    masked = torch.segment_reduce(batch.loss_weights, "sum", lengths=lengths)
    discriminator_loss = losses @ spread(masked / lengths)
    return Loss(
        generator_loss + discriminator_weight * discriminator_loss,
        batch.loss_weights.sum(),
        {"generator_loss": generator_loss.detach(), "discriminator_loss": discriminator_loss.detach()},
    )


@torch.no_grad()
def fill_masks(generator: CausalLM, hidden: Tensor, batch: ReplacedTokenBatch, chunk_tokens: int = 512) -> Tensor:
    """[N] token ids: the real ones, and where weights are not 0, samples of the generator.

    A sample is the first token whose cumulative probability exceeds the noise. The logits of `chunk_tokens` tokens
    exist at a time.
    """
    filled = batch.targets.clone()
    for where in torch.split(batch.loss_weights.nonzero().squeeze(1), chunk_tokens):
        rows = generator.before_head(hidden[where])
        filled[where] = _sample(generator.lm_head, generator.logit_softcap, rows, batch.noise[where])
    return filled


def _sample(head: Head, softcap: float | None, rows: Tensor, noise: Tensor) -> Tensor:
    logits = F.linear(rows, *whole_head(head))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    # Rounding may leave the last sum just below one, or below the noise.
    return torch.searchsorted(cumulative, noise[:, None], right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
