"""Masked language modeling: tokens are hidden and said again from both sides (BERT, arXiv:1810.04805).

Knows no trainer and no model class. Without a target nothing is lost: what is not chosen has weight 0.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import Documents, TokenIds, packed
from lmworks.objectives.causal_lm import CausalLM, batch_loss
from lmworks.objectives.draws import Draws
from lmworks.objectives.loss import Loss

Share = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=0)]


class MaskingConfig(Config):
    """Which tokens are to be predicted, and what stands in their place."""

    mask_token_id: TokenId
    vocab_size: Annotated[int, Field(gt=0)]
    """Replacing tokens are drawn from all of it."""
    special_token_ids: tuple[TokenId, ...] = ()
    """Never chosen: marks of beginning and end, separators."""
    mlm_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of a document's other tokens that is chosen, rounded, at least one."""
    mask_replace_prob: Share = 0.8
    """Share of what is chosen that becomes the mask token."""
    random_replace_prob: Share = 0.1
    """Share that becomes another token; what remains stays as it is, and is to be predicted all the same."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.mask_token_id >= self.vocab_size:
            raise ValueError(f"mask_token_id {self.mask_token_id} is outside the vocabulary of {self.vocab_size}")
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError(
                f"mask_replace_prob {self.mask_replace_prob} and random_replace_prob {self.random_replace_prob} "
                "are shares of one whole and must not exceed 1 together"
            )
        return self


def mask_documents(
    documents: Documents, draws: Draws, config: MaskingConfig, *, continues_word: NDArray[np.bool_] | None = None
) -> Batch:
    """A batch whose inputs are corrupted, whose targets are the documents, with weight 1 where a token was chosen.

    Args:
        documents: token ids.
        draws: of the row.
        config: what is chosen and what becomes of it.
        continues_word: [V] whether a token goes on with the word before it; words are then chosen whole.
    """
    chosen = [choose_tokens(ids, draws, config, continues_word) for ids in documents]
    inputs = [corrupt(ids, where, draws, config) for ids, where in zip(documents, chosen, strict=True)]
    return packed(Batch, inputs, documents, chosen)


def choose_tokens(
    token_ids: TokenIds, draws: Draws, config: MaskingConfig, continues_word: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """[T] whether each token is to be predicted. Words that would exceed the number of tokens are passed over."""
    chosen = np.zeros(len(token_ids), np.bool_)
    candidates = np.flatnonzero(~np.isin(token_ids, config.special_token_ids))
    wanted = max(1, int(np.rint(len(candidates) * config.mlm_probability)))
    if not len(candidates):
        return chosen
    if continues_word is None:
        chosen[candidates[draws.choose(len(candidates), wanted)]] = True
        return chosen
    # A special token, which is no candidate, ends a word too.
    starts = ~continues_word[token_ids[candidates]] | (np.diff(candidates, prepend=-2) > 1)
    words = np.split(candidates, np.flatnonzero(starts)[1:])
    left = wanted
    for word in (words[i] for i in draws.order(len(words))):
        if len(word) <= left:
            chosen[word] = True
            left -= len(word)
    return chosen


def corrupt(token_ids: TokenIds, chosen: NDArray[np.bool_], draws: Draws, config: MaskingConfig) -> TokenIds:
    """The document with the chosen tokens masked, replaced or kept, each by itself."""
    corrupted = token_ids.copy()
    where = np.flatnonzero(chosen)
    kind = draws.uniform(len(where))
    others = draws.integers(config.vocab_size, len(where))
    masked = kind < config.mask_replace_prob
    replaced = ~masked & (kind < config.mask_replace_prob + config.random_replace_prob)
    corrupted[where[masked]] = config.mask_token_id
    corrupted[where[replaced]] = others[replaced]
    return corrupted


def masked_lm(model: CausalLM, batch: Batch, *, z_loss: float = 0.0, label_smoothing: float = 0.0) -> Loss:
    """Σ weight · -log p(target | its corrupted document), in nats.

    Args:
        model: an encoder with a head for masked tokens.
        batch: of `mask_documents`.
        z_loss: see `linear_cross_entropy`.
        label_smoothing: see `linear_cross_entropy`.
    """
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    return batch_loss(model, hidden, batch, z_loss=z_loss, label_smoothing=label_smoothing)
