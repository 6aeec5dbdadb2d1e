"""From the positions' slot to modules: vectors added to embeddings, and the codes that act inside attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lmworks.models.config import ModelConfig, StackConfig, rotary_dim
from lmworks.models.position_slots import (
    AlibiPositions,
    DynamicScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Positions,
    RelativeBiasPositions,
    RotaryPositions,
    SinusoidalPositions,
    YarnScaling,
)
from lmworks.models.slots import Attention
from lmworks.nn import rope
from lmworks.nn.positions import (
    AlibiBias,
    LearnedPositionEmbedding,
    RelativePositionBias,
    RelativeSinusoids,
    RotaryEmbedding,
    SinusoidalPositionEmbedding,
)


def build_position_embedding(config: ModelConfig) -> nn.Module | None:
    """What is added to token embeddings; None for other kinds of positions."""
    positions, width = config.positions, config.embed.embedding_size or config.hidden_size
    if isinstance(positions, LearnedPositions):
        return LearnedPositionEmbedding(config.max_position_embeddings, width, positions.offset)
    if isinstance(positions, SinusoidalPositions):
        return SinusoidalPositionEmbedding(
            width, interleaved=positions.interleaved, offset=positions.offset, endpoint=positions.endpoint
        )
    return None


def _rotary(config: ModelConfig, stack: StackConfig, positions: Positions, attention: Attention) -> nn.Module:
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
            factor = scaling.attention_factor or rope.yarn_attention_factor(
                scaling.factor, scaling.mscale, scaling.mscale_all_dim
            )
        case LongRopeScaling():
            original = scaling.original_max_position_embeddings
            speeds = rope.longrope_speeds(plain, scaling.short_factor, scaling.long_factor, original)
            stretched = config.max_position_embeddings / original
            factor = scaling.attention_factor or rope.longrope_attention_factor(stretched, original)
    return RotaryEmbedding(speeds, interleaved=positions.interleaved, factor=factor)


def _alibi(config: ModelConfig, stack: StackConfig, positions: Positions, attention: Attention) -> nn.Module:
    assert isinstance(positions, AlibiPositions), "the table of position codes matches kinds to builders"
    return AlibiBias(attention.num_attention_heads)


def _relative_bias(config: ModelConfig, stack: StackConfig, positions: Positions, attention: Attention) -> nn.Module:
    assert isinstance(positions, RelativeBiasPositions), "the table of position codes matches kinds to builders"
    with torch.device("meta"):  # the only position code with weights
        return RelativePositionBias(
            attention.num_attention_heads, positions.relative_attention_num_buckets,
            positions.relative_attention_max_distance, bidirectional=not stack.causal,
        )  # fmt: skip


def _relative_sinusoidal(
    config: ModelConfig, stack: StackConfig, positions: Positions, attention: Attention
) -> nn.Module:
    return RelativeSinusoids(config.hidden_size)


POSITION_CODES: dict[str, Callable[[ModelConfig, StackConfig, Positions, Attention], nn.Module]] = {
    "rope": _rotary,
    "alibi": _alibi,
    "relative_bias": _relative_bias,
    "relative_sinusoidal": _relative_sinusoidal,
}
"""Builders of position codes that act inside attention, by `kind`."""
