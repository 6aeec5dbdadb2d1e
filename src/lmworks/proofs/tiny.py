"""Tiny random models of awkward sizes, for proofs that need a model and not a good one."""

from __future__ import annotations

import torch

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import LearnedPositions, RotaryPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, NormConfig
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
    initializer_range=0.1,
)
"""Grouped heads, untied head, an odd vocabulary; weights five times the usual, so that attention is not flat."""

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
    initializer_range=0.1,
)
"""Learned positions, biases everywhere, LayerNorm, tied head."""

TINY = {"llama": LLAMA, "gpt2": GPT2}


def tiny_model(family: str, seed: int = 0) -> Transformer:
    """A random model of `family`, in evaluation mode."""
    return build_model(TINY[family], seed=seed).eval()


def random_tokens(length: int, seed: int) -> list[int]:
    """Token ids of a random document."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, LLAMA.vocab_size, (length,), generator=generator).tolist()
    return ids
