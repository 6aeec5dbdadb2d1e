"""From a configuration to modules: the only place that maps slots to classes, and the initialization."""

from __future__ import annotations

import math

import torch
from torch import nn

from lmworks.models.block import Block
from lmworks.models.config import LearnedPositions, ModelConfig, NormConfig
from lmworks.models.transformer import Stack, Transformer
from lmworks.nn.attention import Attention
from lmworks.nn.mlp import MLP
from lmworks.nn.norms import RMSNorm


def build_model(config: ModelConfig, *, seed: int | None = None) -> Transformer:
    """Build a model with random weights.

    Args:
        config: the model.
        seed: makes the weights reproducible; None draws from torch's global generator. On the meta
            device (inside `torch.device("meta")`) no weights are drawn.
    """
    device = torch.get_default_device()
    with torch.device("meta"):  # torch's own initialization would be overwritten, and advance the global generator
        learned = isinstance(config.positions, LearnedPositions)
        model = Transformer(
            config,
            nn.Embedding(config.vocab_size, config.hidden_size),
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None,
            Stack([_block(config, i) for i in range(config.decoder.num_hidden_layers)], _norm(config)),
        )
    if device.type != "meta":
        initialize(model.to_empty(device=device), seed)
    return model


def initialize(model: Transformer, seed: int | None = None) -> None:
    """Normal weights; projections back into the residual stream are scaled by 1/√(2·layers) (GPT-2).

    Norms start at one, biases at zero.
    """
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    std = model.config.initializer_range
    residual_std = std / math.sqrt(2 * model.config.decoder.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=residual_std if into_residual else std, generator=generator)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)


def _block(config: ModelConfig, layer: int) -> Block:
    stack = config.decoder
    attention, mlp = stack.attention, stack.mlp
    return Block(
        Attention(
            layer,
            config.hidden_size,
            attention.num_attention_heads,
            attention.num_key_value_heads,
            attention.head_dim,
            qkv_bias=attention.qkv_bias,
            o_bias=attention.o_bias,
            qk_norm_eps=stack.norm.eps if attention.qk_norm else None,
        ),
        MLP(config.hidden_size, mlp.intermediate_size, mlp.hidden_act, gated=mlp.gated, bias=mlp.bias),
        _norm(config),
        _norm(config),
    )


def _norm(config: ModelConfig) -> nn.Module:
    norm: NormConfig = config.decoder.norm
    return RMSNorm(config.hidden_size, norm.eps) if norm.kind == "rms" else nn.LayerNorm(config.hidden_size, norm.eps)
