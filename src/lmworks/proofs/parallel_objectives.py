"""Every objective with a tiny model and documents to learn from, for the proof of parallel training. Knows no form.

Documents come in units that stay together, and a unit is arranged the same in whatever batch it stands: so any
division of the units is the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.head_slots import EmbeddingHead, MaskedLMHead, TokenClassificationHead
from lmworks.models.multi_token import MultiTokenTransformer
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.position_slots import LearnedPositions, RelativeBiasPositions, RelativeSinusoidalPositions
from lmworks.models.slots import (
    AttentionConfig,
    EmbedConfig,
    FeedForward,
    MLPConfig,
    MoEConfig,
    NormConfig,
    XLAttentionConfig,
)
from lmworks.models.transformer import Transformer
from lmworks.nn.batch import Batch, next_token_document, pack
from lmworks.objectives.arrange import Documents
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.contrastive import contrastive, info_nce
from lmworks.objectives.distillation import distillation
from lmworks.objectives.draws import Draws
from lmworks.objectives.fill_in_the_middle import FillInTheMiddleConfig, fill_in_the_middle
from lmworks.objectives.masked_lm import MaskingConfig, mask_documents, masked_lm
from lmworks.objectives.multi_token import multi_token
from lmworks.objectives.permutation import permutation_lm, permute
from lmworks.objectives.replaced_tokens import mask_for_detection, replaced_token_detection
from lmworks.objectives.segment_pairs import (
    SegmentPairConfig,
    masked_lm_and_segment_pair,
    segment_pair_batch,
    sentence_order_pairs,
)
from lmworks.objectives.source_target import (
    for_decoder,
    for_encoder_decoder,
    prefix_lm,
    prefix_pairs,
    seq2seq,
)
from lmworks.objectives.span_corruption import SpanCorruptionConfig, span_corruption
from lmworks.objectives.ul2 import UL2Config, ul2
from lmworks.train.moe import RoutedObjective

UNITS = 16
TOKENS = 120
"""Ids below are words; those above are marks, masks and sentinels."""
VOCABULARY = 132
SIZE = 32
SENTINELS = tuple(range(VOCABULARY - 1, TOKENS + 4, -1))
MASKING = MaskingConfig(mask_token_id=TOKENS, vocab_size=VOCABULARY, special_token_ids=(TOKENS + 1, TOKENS + 2))
PAIRS = 2
"""Compared with each other by the contrastive loss."""

Objective = Callable[[Any, Any], Any]
Made = tuple[nn.Module, dict[str, str] | None, list[str]]
"""A model, how `tensor` divides it, and the modules that are sharded together."""


@dataclass(frozen=True)
class Case:
    """An objective, what it trains, and what it cannot do."""

    arrange: Callable[[Documents, Draws], Batch]
    objective: Objective
    build: Callable[[int, int, FeedForward, int], Made]
    """From layers, seed, feed-forward net and ranks of `tensor`."""
    gather: bool = False
    """Whether `context_parallel` has to give it all tokens."""
    documents: int = 1
    """Of a unit."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Degrees that are refused above 1, and words of the reason."""

    def units(self, seed: int) -> list[Batch]:
        """`UNITS` batches of ragged lengths, to be joined in any way."""
        numbers = np.random.default_rng(seed)
        units = []
        for row in range(UNITS):
            lengths = numbers.integers(6, 34, self.documents)
            documents = [numbers.integers(0, TOKENS, n) for n in lengths]
            units.append(self.arrange(documents, Draws(seed, row)))
        return units


def net(*, experts: bool) -> FeedForward:
    """The feed-forward net of a proof's models."""
    return MoEConfig(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16) if experts else _DENSE


_DENSE = MLPConfig(intermediate_size=48)
_HEADS = AttentionConfig(num_attention_heads=8, num_key_value_heads=4, head_dim=8)


def _stack(layers: int, mlp: FeedForward, **fields: Any) -> StackConfig:
    return StackConfig(**{"num_hidden_layers": layers, "attention": _HEADS, "mlp": mlp, **fields})


def _config(**fields: Any) -> ModelConfig:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": SIZE, "max_position_embeddings": 256, "initializer_range": 0.1}
    return ModelConfig(**{"tie_word_embeddings": False, **sizes, **fields})


def decoder_config(layers: int, mlp: FeedForward) -> ModelConfig:
    """Llama's shape."""
    return _config(decoder=_stack(layers, mlp))


def _encoder_config(layers: int, mlp: FeedForward, head: Any, **fields: Any) -> ModelConfig:
    """BERT's shape: learned positions, segments, norms after the sums, a tied head."""
    norm = NormConfig(kind="layer")
    stack = _stack(layers, mlp, causal=False, norm=norm, placement="post", final_norm=False)
    embed = EmbedConfig(type_vocab_size=2, norm=norm)
    tied = isinstance(head, MaskedLMHead)
    return _config(
        encoder=stack, embed=embed, positions=LearnedPositions(), head=head, tie_word_embeddings=tied, **fields
    )


def _two_stacks(layers: int, mlp: FeedForward) -> ModelConfig:
    """T5's shape: trained biases of scores, tied embeddings."""
    positions = RelativeBiasPositions(relative_attention_num_buckets=8, relative_attention_max_distance=20)
    return _config(
        encoder=_stack(layers, mlp, causal=False), decoder=_stack(layers, mlp, cross_attention=_HEADS),
        positions=positions, decoder_start_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip


def _two_streams(layers: int, mlp: FeedForward) -> ModelConfig:
    """XLNet's shape."""
    stack = _stack(layers, mlp, attention=XLAttentionConfig(num_attention_heads=8, head_dim=4), causal=False)
    return _config(encoder=stack, positions=RelativeSinusoidalPositions())


def _model(config: Callable[[int, FeedForward], ModelConfig]) -> Callable[[int, int, FeedForward, int], Made]:
    def build(layers: int, seed: int, mlp: FeedForward, ranks: int) -> Made:
        made = config(layers, mlp)
        return build_model(made, seed=seed), tensor_plan(made, ranks) if ranks > 1 else None, shard_units(made)

    return build


class GeneratorAndDiscriminator(nn.Module):
    """ELECTRA's two encoders."""

    def __init__(self, generator: Transformer, discriminator: Transformer) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


def _two_encoders(layers: int, seed: int, mlp: FeedForward, ranks: int) -> Made:
    small = _encoder_config(1, mlp, MaskedLMHead())
    large = _encoder_config(layers, mlp, TokenClassificationHead(num_labels=1))
    parts = {"generator": small, "discriminator": large}
    both = GeneratorAndDiscriminator(build_model(small, seed=seed + 1), build_model(large, seed=seed))
    plan = {f"{n}.{k}": v for n, c in parts.items() for k, v in tensor_plan(c, ranks).items()} if ranks > 1 else None
    return both, plan, [f"{name}.{unit}" for name, config in parts.items() for unit in shard_units(config)]


def _further_ahead(layers: int, seed: int, mlp: FeedForward, ranks: int) -> Made:
    config = decoder_config(layers, mlp)
    model = MultiTokenTransformer(build_model(config, seed=seed), 2, seed=seed)
    units = [f"model.{unit}" for unit in shard_units(config)]
    if ranks == 1:
        return model, None, units
    # The depths stay whole: each is one layer beside many.
    return model, {f"model.{name}": style for name, style in tensor_plan(config, ranks).items()}, units


def _taught(model: Any, batch: Batch) -> Any:
    """Distillation from a fixed teacher of another size."""
    return distillation(model, batch, teacher=_teacher(), hard_weight=0.3, temperature=1.5)


def _teacher() -> Transformer:
    if not _TEACHERS:
        _TEACHERS.append(build_model(decoder_config(1, _DENSE), seed=99).eval().requires_grad_(False))
    return _TEACHERS[0]


_TEACHERS: list[Transformer] = []


def _next_tokens(documents: Documents, draws: Draws) -> Batch:
    return pack([next_token_document(ids.tolist()) for ids in documents])


def _segment_pairs(documents: Documents, draws: Draws) -> Batch:
    marks = SegmentPairConfig(cls_token_id=TOKENS + 1, sep_token_id=TOKENS + 2)
    return segment_pair_batch(sentence_order_pairs(documents, draws, marks), draws, MASKING)


_FIM = FillInTheMiddleConfig(prefix_token_id=TOKENS, suffix_token_id=TOKENS + 1, middle_token_id=TOKENS + 2)
_SPANS = SpanCorruptionConfig(sentinel_token_ids=SENTINELS, noise_density=0.2)
_MODES = UL2Config(sentinel_token_ids=SENTINELS * 3, mode_token_ids={"R": TOKENS, "S": TOKENS + 1, "X": TOKENS + 2})
_NEAREST = partial(info_nce, temperature=0.5)
"""The usual temperature of 0.05 magnifies the rounding of cosines twentyfold."""
_CROSS = {"pipeline": "encoder and decoder cannot be cut", "context": "its tokens cannot be split"}
"""The ring meets the trained bias of the encoder's scores first, Ulysses the decoder that attends to the encoder."""
_DECODER = _model(decoder_config)
_MASKED = _model(partial(_encoder_config, head=MaskedLMHead()))

CASES: dict[str, Case] = {
    "causal LM": Case(_next_tokens, partial(causal_lm, z_loss=1e-2, label_smoothing=0.1), _DECODER),
    "masked LM": Case(partial(mask_documents, config=MASKING), masked_lm, _MASKED),
    "replaced tokens": Case(
        partial(mask_for_detection, config=MASKING), replaced_token_detection, _two_encoders, gather=True,
        refused={"pipeline": "no stack of its own"},
    ),
    "span corruption": Case(
        for_encoder_decoder(partial(span_corruption, config=_SPANS), 0), seq2seq, _model(_two_stacks), refused=_CROSS
    ),
    "UL2": Case(for_decoder(partial(ul2, config=_MODES)), prefix_lm, _DECODER, gather=True),
    "prefix LM": Case(for_decoder(prefix_pairs), partial(prefix_lm, z_loss=1e-3), _DECODER, gather=True),
    "permutation LM": Case(
        permute, permutation_lm, _model(_two_streams), gather=True,
        refused={
            "pipeline": "two streams", "context": "PermutedContext cannot be split", "tensor": "'xl' attention",
        },
    ),
    "seq2seq": Case(
        for_encoder_decoder(prefix_pairs, 0), partial(seq2seq, label_smoothing=0.1), _model(_two_stacks),
        refused=_CROSS,
    ),
    "fill in the middle": Case(partial(fill_in_the_middle, config=_FIM), causal_lm, _DECODER),
    "multi-token prediction": Case(
        _next_tokens, multi_token, _further_ahead, gather=True, refused={"pipeline": "no stack of its own"}
    ),
    "contrastive": Case(
        _next_tokens, partial(contrastive, group_pairs=PAIRS, loss=_NEAREST),
        _model(partial(_encoder_config, head=EmbeddingHead())),
        gather=True, documents=2 * PAIRS,
    ),
    "segment pairs": Case(
        _segment_pairs, masked_lm_and_segment_pair,
        _model(partial(_encoder_config, head=MaskedLMHead(next_sentence=True))), gather=True,
    ),
    "distillation": Case(_next_tokens, _taught, _DECODER, gather=True),
}  # fmt: skip
"""By the objective's name."""

BALANCED = Case(
    _next_tokens, RoutedObjective(causal_lm, 1e-2, 1e-3), _DECODER,
    refused={"pipeline": "balances the experts of all layers", "context": "balances experts over whole batches"},
)  # fmt: skip
"""Losses that even the routing are of each micro-batch, so one process has the same micro-batches."""
