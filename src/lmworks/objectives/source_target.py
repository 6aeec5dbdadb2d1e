"""What is given and what is to be said: pairs that encoder-decoders read apart and decoders read as prefix and rest.

Span corruption, UL2, prefix language modeling and translation differ in how they make pairs, and in nothing else.
Knows no trainer and no model class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import Arrangement, Documents, TokenIds, bounds, laid_out, packed, places
from lmworks.objectives.causal_lm import CausalLM, LanguageHead, batch_loss
from lmworks.objectives.draws import Draws
from lmworks.objectives.loss import Loss


class SourceTarget(NamedTuple):
    """One pair; neither is empty."""

    source: TokenIds
    target: TokenIds


Pairs = Callable[[Documents, Draws], Sequence[SourceTarget]]
"""How an objective makes pairs of documents, such as `span_corruption` with its configuration."""


@dataclass(frozen=True)
class Seq2SeqBatch(Batch):
    """Packed targets for a decoder, and packed sources for the encoder, document by document."""

    source_ids: Tensor
    """[M] int64."""
    source_positions: Tensor
    """[M] int64."""
    source_cu_seqlens: Tensor
    """[D+1] int32, from 0 to M."""


@dataclass(frozen=True)
class PrefixBatch(Batch):
    """Packed documents, each with a beginning that all of it may see."""

    prefix_lengths: Tensor
    """[D] int64."""


class EncoderDecoder(LanguageHead, Protocol):
    """A model of two stacks with a head."""

    def encode(self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /) -> Tensor:
        """Hidden states [M, E] of sources."""
        ...

    def __call__(
        self, input_ids: Tensor, positions: Tensor, context: AttentionContext, /, *, memory: Tensor | None
    ) -> Tensor:
        """Hidden states [N, E] of targets."""
        ...


def seq2seq_batch(pairs: Sequence[SourceTarget], decoder_start_token_id: int) -> Seq2SeqBatch:
    """Pairs for an encoder-decoder; the decoder reads the start token and all of the target but its last token."""
    lengths = [len(pair.source) for pair in pairs]
    return packed(
        Seq2SeqBatch,
        [np.concatenate([[decoder_start_token_id], pair.target[:-1]]) for pair in pairs],
        [pair.target for pair in pairs],
        [np.ones(len(pair.target)) for pair in pairs],
        source_ids=laid_out([pair.source for pair in pairs]),
        source_positions=places(lengths),
        source_cu_seqlens=bounds(lengths),
    )


def prefix_batch(pairs: Sequence[SourceTarget]) -> PrefixBatch:
    """Pairs for a decoder: the source is the prefix, and the tokens of the target alone are to be predicted."""
    wholes = [np.concatenate(pair) for pair in pairs]
    weights = [(np.arange(1, len(w)) >= len(p.source)).astype(np.float32) for w, p in zip(wholes, pairs, strict=True)]
    prefixes = laid_out([np.array([len(pair.source)]) for pair in pairs])
    return packed(PrefixBatch, [w[:-1] for w in wholes], [w[1:] for w in wholes], weights, prefix_lengths=prefixes)


def for_encoder_decoder(pairs: Pairs, decoder_start_token_id: int) -> Arrangement:
    """The arrangement that makes `Seq2SeqBatch` of these pairs."""
    return lambda documents, draws: seq2seq_batch(pairs(documents, draws), decoder_start_token_id)


def for_decoder(pairs: Pairs) -> Arrangement:
    """The arrangement that makes `PrefixBatch` of these pairs."""
    return lambda documents, draws: prefix_batch(pairs(documents, draws))


def seq2seq(model: EncoderDecoder, batch: Seq2SeqBatch, *, z_loss: float = 0.0, label_smoothing: float = 0.0) -> Loss:
    """Σ weight · -log p(target | its source, the target's tokens before it), in nats.

    Args:
        model: an encoder-decoder with a head.
        batch: of `seq2seq_batch`.
        z_loss: see `linear_cross_entropy`.
        label_smoothing: see `linear_cross_entropy`.
    """
    memory = model.encode(batch.source_ids, batch.source_positions, PackedContext(batch.source_cu_seqlens))
    context = PackedContext(batch.cu_seqlens, memory_cu_seqlens=batch.source_cu_seqlens)
    hidden = model(batch.input_ids, batch.positions, context, memory=memory)
    return batch_loss(model, hidden, batch, z_loss=z_loss, label_smoothing=label_smoothing)


def prefix_lm(model: CausalLM, batch: PrefixBatch, *, z_loss: float = 0.0, label_smoothing: float = 0.0) -> Loss:
    """Σ weight · -log p(target | the whole prefix, the tokens before it), in nats (arXiv:1910.10683).

    Args:
        model: a decoder with a head; inside the prefix it sees both sides.
        batch: of `prefix_batch`.
        z_loss: see `linear_cross_entropy`.
        label_smoothing: see `linear_cross_entropy`.
    """
    context = PackedContext(batch.cu_seqlens, prefix_lengths=batch.prefix_lengths)
    hidden = model(batch.input_ids, batch.positions, context)
    return batch_loss(model, hidden, batch, z_loss=z_loss, label_smoothing=label_smoothing)


def prefix_pairs(documents: Documents, draws: Draws) -> list[SourceTarget]:
    """Each document cut in two at a place drawn evenly; those of a single token are left out."""
    long_enough = (ids for ids in documents if len(ids) > 1)
    return [SourceTarget(*np.split(ids, [1 + draws.below(len(ids) - 1)])) for ids in long_enough]
