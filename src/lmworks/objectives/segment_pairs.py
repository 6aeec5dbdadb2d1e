"""Two segments and the question whether the second follows the first, alone or beside masked language modeling.

NSP (BERT, arXiv:1810.04805) and SOP (ALBERT, arXiv:1909.11942). Knows no trainer and no model class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.config import Config
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import Documents, TokenIds, laid_out, packed
from lmworks.objectives.causal_lm import LanguageHead, token_loss
from lmworks.objectives.draws import Draws
from lmworks.objectives.loss import Loss
from lmworks.objectives.masked_lm import MaskingConfig, choose_tokens, corrupt

FOLLOWS, FOLLOWS_NOT = 0, 1
TokenId = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class SegmentPairBatch(Batch):
    """Packed documents of two segments each; targets are those of masked language modeling."""

    token_type_ids: Tensor
    """[N] int64: 0 in the first segment with its marks, 1 in the second."""
    labels: Tensor
    """[D] int64: 0 where the second segment follows the first."""


class SegmentPairConfig(Config):
    """The marks: `<cls> first <sep> second <sep>`."""

    cls_token_id: TokenId
    sep_token_id: TokenId


class SegmentPair(NamedTuple):
    """One document of a `SegmentPairBatch`."""

    token_ids: TokenIds
    token_type_ids: NDArray[np.int64]
    label: int


class PairJudge(Protocol):
    """A model that says whether segments follow each other."""

    def __call__(
        self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /, *, token_type_ids: Tensor | None
    ) -> Tensor:
        """Hidden states [N, E]."""
        ...

    def document_logits(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[N, E] -> [D, 2]: they follow each other, they do not."""
        ...


class MaskedPairJudge(PairJudge, LanguageHead, Protocol):
    """One that also predicts masked tokens."""


def next_sentence_pairs(
    documents: Documents, draws: Draws, config: SegmentPairConfig, *, other: Callable[[Draws], TokenIds]
) -> list[SegmentPair]:
    """Each document cut in two; half of the second segments come from another document.

    Args:
        documents: token ids without marks; those of a single token are left out.
        draws: of the row.
        config: the marks.
        other: any document of the corpus, drawn; the row itself may have too few.
    """
    pairs = []
    for first, second in _cut(documents, draws):
        if draws.chance(0.5):
            pairs.append(_marked(first, second, FOLLOWS, config))
        else:
            elsewhere = other(draws)
            begin = draws.below(max(1, len(elsewhere) - len(second) + 1))
            pairs.append(_marked(first, elsewhere[begin : begin + len(second)], FOLLOWS_NOT, config))
    return pairs


def sentence_order_pairs(documents: Documents, draws: Draws, config: SegmentPairConfig) -> list[SegmentPair]:
    """Each document cut in two; half of them with the segments exchanged. Arguments as in `next_sentence_pairs`."""
    return [
        _marked(first, second, FOLLOWS, config) if draws.chance(0.5) else _marked(second, first, FOLLOWS_NOT, config)
        for first, second in _cut(documents, draws)
    ]


def _cut(documents: Documents, draws: Draws) -> list[list[TokenIds]]:
    """Two parts of every document that has two tokens, cut at a place drawn evenly."""
    return [np.split(ids, [1 + draws.below(len(ids) - 1)]) for ids in documents if len(ids) > 1]


def _marked(first: TokenIds, second: TokenIds, label: int, config: SegmentPairConfig) -> SegmentPair:
    begin, end = [config.cls_token_id], [config.sep_token_id]
    types = np.repeat([0, 1], [len(first) + 2, len(second) + 1])
    return SegmentPair(np.concatenate([begin, first, end, second, end]), types, label)


def segment_pair_batch(
    pairs: Sequence[SegmentPair], draws: Draws, masking: MaskingConfig | None = None
) -> SegmentPairBatch:
    """Pairs as a batch.

    Args:
        pairs: of `next_sentence_pairs` or `sentence_order_pairs`.
        draws: of the row.
        masking: which tokens are to be predicted too, its special tokens being the marks at least; None: none.
    """
    ids = [pair.token_ids for pair in pairs]
    if masking is None:
        inputs, chosen = ids, [np.zeros(len(i), np.bool_) for i in ids]
    else:
        chosen = [choose_tokens(i, draws, masking) for i in ids]
        inputs = [corrupt(i, where, draws, masking) for i, where in zip(ids, chosen, strict=True)]
    return packed(
        SegmentPairBatch, inputs, ids, chosen,
        token_type_ids=laid_out([pair.token_type_ids for pair in pairs]),
        labels=laid_out([np.array([pair.label]) for pair in pairs]),
    )  # fmt: skip


def segment_pair(model: PairJudge, batch: SegmentPairBatch) -> Loss:
    """Σ over documents of -log p(label), in nats; the count is the documents', the metric "accuracy" the hits."""
    hidden = model(
        batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens), token_type_ids=batch.token_type_ids
    )
    losses, hits = _judgment(model, hidden, batch)
    return Loss(losses.sum(), losses.new_tensor(len(losses)), {"accuracy": hits.sum()})


def masked_lm_and_segment_pair(model: MaskedPairJudge, batch: SegmentPairBatch) -> Loss:
    """Masked language modeling and the judgment of pairs together, as BERT and ALBERT were trained.

    BERT adds two means, over masked tokens and over pairs. As sums over one count, that of the masked tokens, a
    pair weighs as many as it has of them.

    Args:
        model: with both heads.
        batch: of `segment_pair_batch` with masking.

    Returns:
        The sum, the count of masked tokens, and as metrics "masked_lm_loss", "segment_pair_loss" and "accuracy",
        weighted likewise.
    """
    hidden = model(
        batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens), token_type_ids=batch.token_type_ids
    )
    masked_lm_loss = token_loss(model, hidden, batch.targets, batch.loss_weights)
    losses, hits = _judgment(model, hidden, batch)
    weights = torch.segment_reduce(batch.loss_weights, "sum", lengths=batch.cu_seqlens.diff().long())
    pair_loss = losses @ weights
    metrics = {
        "masked_lm_loss": masked_lm_loss.detach(), "segment_pair_loss": pair_loss.detach(), "accuracy": hits @ weights,
    }  # fmt: skip
    return Loss(masked_lm_loss + pair_loss, batch.loss_weights.sum(), metrics)


def _judgment(model: PairJudge, hidden: Tensor, batch: SegmentPairBatch) -> tuple[Tensor, Tensor]:
    """-log p(label) and whether it is the likelier one, [D] float32 each."""
    logits = model.document_logits(hidden, batch.cu_seqlens).float()
    return F.cross_entropy(logits, batch.labels, reduction="none"), (logits.argmax(1) == batch.labels).float()
