"""Tiny random models of awkward sizes, for proofs that need a model and not a good one."""

from __future__ import annotations

from lmworks.models.build import build_model
from lmworks.models.config import (
    AttentionConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RotaryPositions,
    StackConfig,
)
from lmworks.models.transformer import Transformer

LLAMA = ModelConfig(
    family="llama",
    vocab_size=131,
    hidden_size=48,
    max_position_embeddings=256,
    positions=RotaryPositions(rope_theta=10_000.0),
    decoder=StackConfig(
        num_hidden_layers=3,
        attention=AttentionConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=8),
        mlp=MLPConfig(intermediate_size=112),
    ),
    tie_word_embeddings=False,
    initializer_range=0.2,
)
"""Grouped heads, untied head, an odd vocabulary; weights large enough for sharp attention."""

GPT2 = ModelConfig(
    family="gpt2",
    vocab_size=131,
    hidden_size=48,
    max_position_embeddings=256,
    positions=LearnedPositions(),
    decoder=StackConfig(
        num_hidden_layers=3,
        attention=AttentionConfig(num_attention_heads=6, num_key_value_heads=6, head_dim=8, qkv_bias=True, o_bias=True),
        mlp=MLPConfig(intermediate_size=192, hidden_act="gelu_pytorch_tanh", gated=False, bias=True),
        norm=NormConfig(kind="layer"),
    ),
    initializer_range=0.2,
)
"""Learned positions, biases everywhere, LayerNorm, tied head."""

TINY = {"llama": LLAMA, "gpt2": GPT2}


def tiny_model(family: str, seed: int = 0) -> Transformer:
    """A random model of `family`, in evaluation mode."""
    return build_model(TINY[family], seed=seed).eval()
