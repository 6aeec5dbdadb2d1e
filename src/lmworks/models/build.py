"""From a configuration to modules: the only place that maps slots to classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from lmworks.kernels.masks import self_attention_mask
from lmworks.models.block import Block
from lmworks.models.config import LayerConfig, ModelConfig, StackConfig, rotary_dim
from lmworks.models.heads import build_head
from lmworks.models.initialization import initialize
from lmworks.models.slots import (
    AlibiPositions,
    AttentionConfig,
    DynamicScaling,
    FeedForward,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MLPConfig,
    NormConfig,
    Positions,
    RelativeBiasPositions,
    RotaryPositions,
    SinusoidalPositions,
    YarnScaling,
)
from lmworks.models.slots import (
    Attention as AttentionSlot,
)
from lmworks.models.stack import Stack
from lmworks.models.transformer import Transformer
from lmworks.nn import rope
from lmworks.nn.attention import Attention
from lmworks.nn.mlp import MLP
from lmworks.nn.norms import build_norm
from lmworks.nn.positions import (
    AlibiBias,
    LearnedPositionEmbedding,
    RelativePositionBias,
    RotaryEmbedding,
    SinusoidalPositionEmbedding,
)
from lmworks.nn.residual import Residual


def build_model(config: ModelConfig, *, seed: int | None = None) -> Transformer:
    """Build a model with random weights.

    Args:
        config: the model.
        seed: makes the weights reproducible; None draws from torch's global generator. On the meta
            device (inside `torch.device("meta")`) no weights are drawn.
    """
    device = torch.get_default_device()
    with torch.device("meta"):  # torch's own initialization would be overwritten, and advance the global generator
        embed = config.embed
        width = embed.embedding_size or config.hidden_size
        model = Transformer(
            config,
            nn.Embedding(config.vocab_size, width),
            nn.Linear(width, config.hidden_size) if embed.embedding_size else None,
            _stack(config, config.encoder),
            _stack(config, config.decoder),
            build_head(config),
        )
    if device.type != "meta":
        initialize(model.to_empty(device=device), seed)
    return model


def _stack(config: ModelConfig, stack: StackConfig | None) -> Stack | None:
    if stack is None:
        return None
    embed, size = config.embed, config.hidden_size
    codes: list[tuple[Positions, AttentionSlot]] = []
    blocks = []
    for index in range(stack.num_hidden_layers):
        layer = stack.layer(index)
        assert layer.attention is not None, "a resolved layer has an attention"
        code = (layer.positions or config.positions, layer.attention)
        position_code = None
        if code[0].kind in POSITION_CODES:
            position_code = next((i for i, known in enumerate(codes) if _same_code(known, code)), len(codes))
            if position_code == len(codes):
                codes.append(code)
        blocks.append(_block(config, stack, layer, index, position_code))
    with torch.device("cpu"):  # speeds and slopes are numbers, not weights
        built = [POSITION_CODES[p.kind](config, stack, p, a) for p, a in codes]
    return Stack(
        blocks,
        _norm(stack.norm, size) if stack.final_norm else None,
        position_codes=built,
        embed_positions=_embed_positions(config),
        embed_types=nn.Embedding(embed.type_vocab_size, size) if embed.type_vocab_size else None,
        embed_norm=_norm(embed.norm, size) if embed.norm is not None else None,
        dropout=embed.dropout,
        layerdrop=stack.residual.layerdrop,
    )


def _same_code(one: tuple[Positions, AttentionSlot], other: tuple[Positions, AttentionSlot]) -> bool:
    """Whether two layers can share a signal: equal positions over heads of equal shape."""
    heads = [(a.num_attention_heads, getattr(a, "head_dim", None)) for _, a in (one, other)]
    return one[0] == other[0] and heads[0] == heads[1]


def _block(config: ModelConfig, stack: StackConfig, layer: LayerConfig, index: int, position_code: int | None) -> Block:
    size, residual = config.hidden_size, stack.residual
    assert layer.attention is not None, "a resolved layer has an attention"
    assert layer.mlp is not None, "a resolved layer has a feed-forward net"
    names = ["input_layernorm"]
    if stack.placement != "parallel_shared":
        names.append("post_attention_layernorm")
    if stack.placement == "sandwich":
        names += ["self_attn_output_layernorm", "mlp_output_layernorm"]
    cross = None
    if stack.cross_attention is not None:
        names.append("cross_attention_layernorm")
        cross = _attention(config, stack, stack.cross_attention, index, cross=True)
    return Block(
        stack.placement,
        position_code,
        MIXERS[layer.attention.kind](config, stack, layer.attention, index),
        FEED_FORWARD[layer.mlp.kind](config, layer.mlp),
        cross,
        {name: _norm(stack.norm, size) for name in names},
        partial(
            Residual,
            size,
            multiplier=residual.multiplier,
            gate=residual.gate,
            layerscale_init=residual.layerscale_init,
            dropout=residual.dropout,
        ),
    )


def _norm(norm: NormConfig, size: int) -> nn.Module:
    return build_norm(norm.kind, size, norm.eps, bias=norm.bias, affine=norm.affine, unit_offset=norm.unit_offset)


def _attention(
    config: ModelConfig, stack: StackConfig, attention: AttentionSlot, index: int, *, cross: bool = False
) -> nn.Module:
    assert isinstance(attention, AttentionConfig), "the table of mixers matches kinds to builders"
    heads, kv_heads, head_dim = attention.num_attention_heads, attention.num_key_value_heads, attention.head_dim
    qk_norms = None
    if attention.qk_norm != "none":
        per_head = attention.qk_norm == "per_head"
        sizes = (head_dim, head_dim) if per_head else (heads * head_dim, kv_heads * head_dim)
        qk_norms = (_norm(stack.norm, sizes[0]), _norm(stack.norm, sizes[1]))
    return Attention(
        index, config.hidden_size, heads, kv_heads, head_dim,
        mask=self_attention_mask(causal=stack.causal, window=attention.sliding_window),
        scale=attention.scale, softcap=attention.attn_logit_softcapping, qkv_bias=attention.qkv_bias,
        o_bias=attention.o_bias, sinks=attention.sinks, qk_norms=qk_norms, norm_heads=attention.qk_norm != "full",
        cross=cross,
    )  # fmt: skip


def _mlp(config: ModelConfig, mlp: FeedForward) -> nn.Module:
    assert isinstance(mlp, MLPConfig), "the table of feed-forward nets matches kinds to builders"
    return MLP(config.hidden_size, mlp.intermediate_size, mlp.hidden_act, gated=mlp.gated, bias=mlp.bias)


def _embed_positions(config: ModelConfig) -> nn.Module | None:
    positions = config.positions
    if isinstance(positions, LearnedPositions):
        return LearnedPositionEmbedding(config.max_position_embeddings, config.hidden_size, positions.offset)
    if isinstance(positions, SinusoidalPositions):
        return SinusoidalPositionEmbedding(config.hidden_size, interleaved=positions.interleaved)
    return None


def _rotary(config: ModelConfig, stack: StackConfig, positions: Positions, attention: AttentionSlot) -> nn.Module:
    assert isinstance(positions, RotaryPositions), "the table of position codes matches kinds to builders"
    size, theta, scaling = rotary_dim(attention, positions), positions.rope_theta, positions.rope_scaling
    plain = rope.inverse_frequencies(size, theta)
    speeds: torch.Tensor | rope.SpeedsOfLength
    factor = 1.0
    match scaling:
        case None:
            speeds = plain
        case LinearScaling():
            speeds = plain / scaling.factor
        case DynamicScaling():
            speeds = rope.dynamic_speeds(size, theta, scaling.factor, scaling.original_max_position_embeddings)
        case Llama3Scaling():
            speeds = rope.llama3_scaled(
                plain, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor,
                scaling.original_max_position_embeddings,
            )  # fmt: skip
        case YarnScaling():
            speeds = rope.yarn_scaled(
                plain, theta, scaling.factor, scaling.beta_fast, scaling.beta_slow,
                scaling.original_max_position_embeddings, truncate=scaling.truncate,
            )  # fmt: skip
            factor = yarn_attention_factor(scaling)
        case LongRopeScaling():
            original = scaling.original_max_position_embeddings
            speeds = rope.longrope_speeds(plain, scaling.short_factor, scaling.long_factor, original)
            factor = longrope_attention_factor(scaling, config.max_position_embeddings)
    return RotaryEmbedding(speeds, interleaved=positions.interleaved, factor=factor)


def yarn_attention_factor(scaling: YarnScaling) -> float:
    """What YaRN multiplies cosines and sines with."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return rope.yarn_mscale(scaling.factor, scaling.mscale) / rope.yarn_mscale(
            scaling.factor, scaling.mscale_all_dim
        )
    return rope.yarn_mscale(scaling.factor)


def longrope_attention_factor(scaling: LongRopeScaling, context: int) -> float:
    """What LongRoPE multiplies cosines and sines with."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    original = scaling.original_max_position_embeddings
    stretched = context / original
    return 1.0 if stretched <= 1 else math.sqrt(1 + math.log(stretched) / math.log(original))


def _alibi(config: ModelConfig, stack: StackConfig, positions: Positions, attention: AttentionSlot) -> nn.Module:
    assert isinstance(positions, AlibiPositions), "the table of position codes matches kinds to builders"
    return AlibiBias(attention.num_attention_heads)


def _relative_bias(
    config: ModelConfig, stack: StackConfig, positions: Positions, attention: AttentionSlot
) -> nn.Module:
    assert isinstance(positions, RelativeBiasPositions), "the table of position codes matches kinds to builders"
    with torch.device("meta"):  # the only position code with weights
        return RelativePositionBias(
            attention.num_attention_heads, positions.relative_attention_num_buckets,
            positions.relative_attention_max_distance, bidirectional=not stack.causal,
        )  # fmt: skip


Mixer = Callable[[ModelConfig, StackConfig, AttentionSlot, int], nn.Module]
MIXERS: dict[str, Mixer] = {"softmax": _attention}
"""Builders of what mixes tokens, by `kind`."""
FEED_FORWARD: dict[str, Callable[[ModelConfig, FeedForward], nn.Module]] = {"dense": _mlp}
"""Builders of feed-forward nets, by `kind`."""
POSITION_CODES: dict[str, Callable[[ModelConfig, StackConfig, Positions, AttentionSlot], nn.Module]] = {
    "rope": _rotary,
    "alibi": _alibi,
    "relative_bias": _relative_bias,
}
"""Builders of position codes that act inside attention, by `kind`."""
