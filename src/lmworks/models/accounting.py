"""What a model costs, in closed form: parameters, operations, bytes of weights and of the cache.

`memory.py` adds what training keeps. Knows no hardware and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from lmworks.models.cache_layout import cache_entries, cache_entry
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.head_slots import DenseHead, EmbeddingHead, ProjectionHead
from lmworks.models.matrices import Part, different_layers, head_matrices, head_width, stack_matrices
from lmworks.models.position_slots import LearnedPositions, RelativeBiasPositions
from lmworks.models.slots import (
    Attention,
    AttentionConfig,
    BlockSparseAttentionConfig,
    LinearAttentionConfig,
    LinformerConfig,
    LSHAttentionConfig,
    MLAConfig,
    NormConfig,
    XLAttentionConfig,
)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by what is done with them."""

    embedding: int
    """Looked up, not multiplied: tokens (also when that matrix serves as the head), classes, positions, segments,
    distances."""
    head: int
    """Matrices after the last layer; the vocabulary's only where it is not the embedding."""
    linear: int
    """Matrices inside the stacks that every token meets."""
    experts: int
    """Routed experts, biases included."""
    active_experts: int
    """Of those, what one token meets."""
    vectors: int
    """Norms, biases, gates, sinks."""

    @property
    def total(self) -> int:
        """All, a tied matrix counted once."""
        return self.embedding + self.head + self.linear + self.experts + self.vectors

    @property
    def active(self) -> int:
        """All but the experts that one token is not routed to."""
        return self.total - self.experts + self.active_experts


@dataclass(frozen=True)
class Flops:
    """Operations of one token's forward pass by part."""

    embedding: float
    """Projection of narrow token vectors, or of patches, to the hidden size."""
    attention: float
    """Projections to queries, keys, values and back."""
    scores: float
    """Queries times keys and weights times values, or what stands in their place."""
    cross_attention: float
    """All of it; the source's keys and values in proportion to its length."""
    mlp: float
    """Dense and shared feed-forward nets."""
    router: float
    experts: float
    """The chosen ones."""
    head: float
    encoder: float
    """The encoder behind a decoder, in proportion to the source's length."""

    @property
    def total(self) -> float:
        """Of the forward pass."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def training(self) -> float:
        """Forward and backward, which multiplies twice for each product."""
        return 3 * self.total


@dataclass(frozen=True)
class CacheBytes:
    """Bytes in the caches of all layers."""

    per_token: int
    windowed: int
    """Of these, in layers that look back only as far as their window."""
    per_source_token: int
    """Keys and values of cross-attention, for each token of the encoder."""


def parameters(config: ModelConfig) -> Parameters:
    """Count a model's parameters."""
    matrices = [m for column in config.columns.values() for m in stack_matrices(*column)]
    head = [m for m in head_matrices(config) if m.part == "head" or not config.tie_word_embeddings]
    biases = sum(m.outputs * m.copies for m in [*matrices, *head_matrices(config)] if m.bias and m.part != "experts")
    experts = [(m, m.size + m.outputs * m.bias) for m in matrices if m.part == "experts"]
    return Parameters(
        embedding=config.vocab_size * _width(config) + sum(_looked_up(*column) for column in config.columns.values()),
        head=sum(m.size for m in head),
        linear=sum(m.size * m.copies for m in matrices if m.part != "experts"),
        experts=sum(m.copies * size for m, size in experts),
        active_experts=sum(m.used * size for m, size in experts),
        vectors=biases + sum(_norms_and_gates(*column) for column in config.columns.values()) + _head_norm(config),
    )


def flops_per_token(
    config: ModelConfig, context_length: float, *, source_length: float | None = None, absorbed: bool = False
) -> Flops:
    """Operations of one token's forward pass.

    A multiplication and an addition count as two. Norms, activations and biases are left out, as is usual
    (Kaplan et al., 2020, arXiv:2001.08361; Chowdhery et al., 2022, arXiv:2204.02311, appendix B); so are heads that
    read one token of a document.

    Args:
        config: the model.
        context_length: keys that each query is multiplied with where there is no window. Pass the sequence length
            for the usual model-FLOPs utilization; half of it for what causal attention needs at least.
        source_length: tokens of the encoder for so many of the decoder; None: as many.
        absorbed: latent attention multiplies with the cached latents, as in decoding, instead of expanding them.
    """
    source = context_length if source_length is None else source_length
    (owner, stack), share = list(config.columns.values())[-1], source / context_length
    products = _products(owner, stack)
    cross, encoder = 0.0, 0.0
    if stack.cross_attention is not None:
        cross = products["cross_attention"] + share * products["source"]
        cross += stack.num_hidden_layers * mixing(stack.cross_attention, config.hidden_size, causal=False, keys=source)
    if config.encoder is not None and config.encoder is not stack:
        encoder = _scores(config, config.encoder, source) + sum(_products(config, config.encoder).values())
    return Flops(
        embedding=2 * products["embedding"],
        attention=2 * products["attention"],
        scores=2 * _scores(config, stack, context_length, absorbed=absorbed),
        cross_attention=2 * cross,
        mlp=2 * products["mlp"],
        router=2 * products["router"],
        experts=2 * products["experts"],
        head=2 * sum(m.size * m.used for m in head_matrices(config)),
        encoder=2 * share * encoder,
    )


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> CacheBytes:
    """What serving keeps, token by token.

    Raises:
        ConfigError: an attention of the decoder has no cache of tokens.
    """
    stack = config.decoder
    if stack is None:
        return CacheBytes(0, 0, 0)
    numbers = [entry.numbers for entry in cache_entries(stack)]
    windows = [getattr(attention, "sliding_window", None) for attention, *_ in different_layers(stack)]
    cross = 0 if stack.cross_attention is None else cache_entry(stack.cross_attention).numbers
    return CacheBytes(
        per_token=sum(numbers) * dtype.itemsize,
        windowed=sum(n for n, window in zip(numbers, windows, strict=True) if window is not None) * dtype.itemsize,
        per_source_token=cross * stack.num_hidden_layers * dtype.itemsize,
    )


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values, or its latents, take in the cache; errors as in `cache_bytes`."""
    return cache_bytes(config, dtype).per_token


def weight_bytes(config: ModelConfig, dtype: torch.dtype, *, int8: bool = False) -> int:
    """Bytes of a model's weights.

    Args:
        config: the model.
        dtype: of what is floating point.
        int8: linear maps are int8 with a scale in `dtype` per output row. Not the vocabulary's matrices, the
            routers and the routed experts.
    """
    matrices = [m for column in config.columns.values() for m in stack_matrices(*column)]
    matrices += head_matrices(config)
    small = [m for m in matrices if int8 and m.linear and m.part != "vocabulary"]
    numbers = sum(m.size for m in small)
    return numbers + (parameters(config).total - numbers + sum(m.outputs for m in small)) * dtype.itemsize


def mixing(attention: Attention, hidden_size: int, *, causal: bool, keys: float, absorbed: bool = False) -> float:
    """Multiplications of one token's queries in all heads, besides the projections; sparse patterns as they are meant.

    Args:
        attention: of a layer.
        hidden_size: which the sinusoids of distances have too.
        causal: whether it sees the past only.
        keys: that there are to see.
        absorbed: see `flops_per_token`.
    """
    heads, sides = attention.num_attention_heads, 1 if causal else 2
    match attention:
        case MLAConfig() as a:
            latent = 2 * a.kv_lora_rank + a.qk_rope_head_dim
            return heads * keys * (latent if absorbed else a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim)
        case XLAttentionConfig(head_dim=size):
            return heads * (2 * size + hidden_size) * keys
        case LinearAttentionConfig(feature_map="favor", num_features=features, head_dim=size):
            return heads * (2 * features * size + 2 * features * (size + 1))
        case LinearAttentionConfig(head_dim=size):
            return heads * 2 * size * (size + 1)
        case LinformerConfig(projected_length=length, head_dim=size):
            return heads * 4 * length * size
        case LSHAttentionConfig(head_dim=size) as a:
            return heads * a.num_hashes * size * (4 * a.chunk_length + max(a.num_buckets // 2, 1))
        case BlockSparseAttentionConfig(layout="longformer") as a:
            keys = min(keys, sides * a.window + 1 + a.num_global_tokens)
        case BlockSparseAttentionConfig() as a:
            keys = min(keys, a.block_size * (1 + 2 * sides + a.num_random_blocks))
        case AttentionConfig(sliding_window=int(window)):
            keys = min(keys, sides * (window - 1) + 1)
    return heads * 2 * attention.head_dim * keys


def norm_size(norm: NormConfig | None, size: int) -> int:
    """Parameters of a norm over `size` numbers."""
    if norm is None or not norm.affine:
        return 0
    return size * (2 if norm.kind == "batch" or (norm.kind == "layer" and norm.bias) else 1)


def block_norms(stack: StackConfig) -> int:
    """Norms over the residual stream in a layer."""
    return {"parallel_shared": 1, "sandwich": 4}.get(stack.placement, 2) + (stack.cross_attention is not None)


def _width(config: ModelConfig) -> int:
    return config.embed.embedding_size or config.hidden_size


def _looked_up(config: ModelConfig, stack: StackConfig) -> int:
    """Vectors of positions, segments, XLNet's target; scores by distance, a table for equal heads or each layer."""
    rows = config.embed.type_vocab_size
    if config.vision is not None and stack is config.vision.stack:
        rows += config.vision.class_token
    if isinstance(config.positions, LearnedPositions):
        rows += config.max_position_embeddings + config.positions.offset
    tables: dict[object, int] = {}
    for index, (attention, _, layer) in enumerate(different_layers(stack)):
        code = layer.positions or config.positions
        if isinstance(code, RelativeBiasPositions):
            heads = attention.num_attention_heads
            shared = (code.to_dict().values(), heads, getattr(attention, "head_dim", None), index * code.per_layer)
            tables[str(shared)] = code.relative_attention_num_buckets * heads
    target = config.hidden_size if isinstance(stack.attention, XLAttentionConfig) else 0
    return rows * _width(config) + target + sum(tables.values())


def _norms_and_gates(config: ModelConfig, stack: StackConfig) -> int:
    """Every vector of a stack that is no bias."""
    hidden, crossed, layers = config.hidden_size, stack.cross_attention, different_layers(stack)
    norm, gate = norm_size(stack.norm, hidden), {"none": 0, "rezero": 1, "layerscale": hidden}[stack.residual.gate]
    count = norm_size(config.embed.norm, _width(config)) + norm * (stack.final_norm - (not stack.first_norm))
    count += len(layers) * (block_norms(stack) * norm + (2 if crossed is None else 3) * gate)
    attentions = [attention for attention, *_ in layers] + ([] if crossed is None else [crossed] * len(layers))
    return count + sum(_inside(stack.norm, attention) for attention in attentions)


def _inside(norm: NormConfig, attention: Attention) -> int:
    """Norms, sinks and biases of scores of an attention layer."""
    if isinstance(attention, MLAConfig):
        return (attention.q_lora_rank or 0) + attention.kv_lora_rank
    if isinstance(attention, XLAttentionConfig):  # three biases of queries, and how two kinds of segments differ
        return 5 * attention.num_attention_heads * attention.head_dim
    if not isinstance(attention, AttentionConfig):
        return 0
    heads = (attention.num_attention_heads, attention.num_key_value_heads)
    widths = {"none": (), "per_head": (1, 1), "full": heads}[attention.qk_norm]
    return sum(norm_size(norm, n * attention.head_dim) for n in widths) + (heads[0] if attention.sinks else 0)


def _head_norm(config: ModelConfig) -> int:
    dense = isinstance(config.head, DenseHead) and config.head.dense_norm and config.head.dense_act != "none"
    always = config.output_stack.norm.model_copy(update={"affine": True})
    if isinstance(config.head, EmbeddingHead | ProjectionHead) and config.head.pooled_norm:
        return norm_size(config.output_stack.norm, config.hidden_size)
    return norm_size(always, head_width(config)) if dense else 0


def _products(config: ModelConfig, stack: StackConfig) -> dict[Part, int]:
    """Multiplications of one token with the matrices of each part."""
    counts: dict[Part, int] = dict.fromkeys(
        ("embedding", "attention", "cross_attention", "source", "mlp", "router", "experts"), 0
    )
    for matrix in stack_matrices(config, stack):
        repeat = 1 if matrix.part == "embedding" else _repeat(stack)
        counts[matrix.part] += repeat * matrix.used * matrix.size
    return counts


def _repeat(stack: StackConfig) -> int:
    return stack.num_hidden_layers // (stack.num_hidden_groups or stack.num_hidden_layers)


def _scores(config: ModelConfig, stack: StackConfig, keys: float, *, absorbed: bool = False) -> float:
    size = config.hidden_size
    layers = different_layers(stack)
    return _repeat(stack) * sum(mixing(a, size, causal=stack.causal, keys=keys, absorbed=absorbed) for a, *_ in layers)
