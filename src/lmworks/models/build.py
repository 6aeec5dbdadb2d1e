"""From a configuration to modules: the only place that maps slots to classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from lmworks.models.block import Block
from lmworks.models.config import LayerConfig, ModelConfig, StackConfig, VisionConfig
from lmworks.models.heads import build_head
from lmworks.models.initialization import initialize
from lmworks.models.mixers import MIXERS, attention_of, norm_of
from lmworks.models.position_codes import POSITION_CODES, build_position_embedding
from lmworks.models.position_slots import Positions
from lmworks.models.slots import Attention, FeedForward, MLPConfig, MoEConfig
from lmworks.models.stack import Stack
from lmworks.models.transformer import Transformer
from lmworks.nn.mlp import MLP
from lmworks.nn.moe import MixtureOfExperts
from lmworks.nn.patches import PatchEmbedding
from lmworks.nn.residual import Residual
from lmworks.nn.routing import Router


def build_model(config: ModelConfig, *, seed: int | None = None) -> Transformer:
    """Build a model with random weights.

    Args:
        config: the model.
        seed: makes the weights reproducible; None draws from torch's global generator. On the meta
            device (inside `torch.device("meta")`) no weights are drawn.
    """
    device = torch.get_default_device()
    with torch.device("meta"):  # torch's own initialization would be overwritten, and advance the global generator
        stacks = {name: _stack(*column, positions=name != "vision") for name, column in config.columns.items()}
        width = config.embed.embedding_size or config.hidden_size
        model = Transformer(
            config,
            _table(config.vocab_size, width),
            stacks.get("encoder"),
            stacks.get("decoder"),
            build_head(config),
            _patches(config.vision),
            stacks.get("vision"),
        )
    if device.type != "meta":
        initialize(model.to_empty(device=device), seed)
    return model


def _table(rows: int, width: int) -> nn.Embedding | None:
    """Vectors that nobody has drawn yet: to draw them on the meta device, torch imports its compiler for a second."""
    if not rows:
        return None
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    return table


def _patches(vision: VisionConfig | None) -> PatchEmbedding | None:
    if vision is None:
        return None
    return PatchEmbedding(
        vision.hidden_size, vision.patch_size, vision.num_channels, vision.grid_size, class_token=vision.class_token,
        bias=vision.patch_bias,
    )  # fmt: skip


def _stack(config: ModelConfig, stack: StackConfig, *, positions: bool) -> Stack:
    """`positions` says whether learned ones are the stack's to add; those of patches are added before."""
    embed, size = config.embed, config.hidden_size
    width = embed.embedding_size or size
    codes: list[tuple[Positions, Attention]] = []
    blocks = []
    for index in range(stack.num_hidden_groups or stack.num_hidden_layers):
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
        norm_of(stack.norm, size) if stack.final_norm else None,
        position_codes=built,
        embed_positions=build_position_embedding(config) if positions else None,
        embed_types=_table(embed.type_vocab_size, width),
        embed_norm=norm_of(embed.norm, width) if embed.norm is not None else None,
        embed_projection=nn.Linear(width, size) if embed.embedding_size else None,
        target_embedding=nn.Parameter(torch.empty(1, size)) if stack.attention.kind == "xl" else None,
        repeat=stack.num_hidden_layers // (stack.num_hidden_groups or stack.num_hidden_layers),
        dropout=embed.dropout,
        layerdrop=stack.residual.layerdrop,
    )


def _same_code(one: tuple[Positions, Attention], other: tuple[Positions, Attention]) -> bool:
    """Whether two layers can share a signal: equal positions over heads of equal shape."""
    if getattr(one[0], "per_layer", False):
        return False
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
        cross = attention_of(config, stack, stack.cross_attention, index, cross=True)
    return Block(
        stack.placement,
        position_code,
        MIXERS[layer.attention.kind](config, stack, layer.attention, index),
        FEED_FORWARD[layer.mlp.kind](config, layer.mlp),
        cross,
        {n: norm_of(stack.norm, size) if stack.first_norm or n != names[0] or index else nn.Identity() for n in names},
        partial(
            Residual,
            size,
            multiplier=residual.multiplier,
            gate=residual.gate,
            layerscale_init=residual.layerscale_init,
            dropout=residual.dropout,
        ),
    )


def _mlp(config: ModelConfig, mlp: FeedForward) -> nn.Module:
    assert isinstance(mlp, MLPConfig), "the table of feed-forward nets matches kinds to builders"
    return MLP(config.hidden_size, mlp.intermediate_size, mlp.hidden_act, gated=mlp.gated, bias=mlp.bias)


def _moe(config: ModelConfig, mlp: FeedForward) -> nn.Module:
    assert isinstance(mlp, MoEConfig), "the table of feed-forward nets matches kinds to builders"
    size, shared = config.hidden_size, mlp.shared_intermediate_size
    router = Router(
        size, mlp.num_experts, mlp.num_experts_per_tok, scoring_func=mlp.scoring_func,
        norm_topk_prob=mlp.norm_topk_prob, routed_scaling_factor=mlp.routed_scaling_factor, n_group=mlp.n_group,
        topk_group=mlp.topk_group, group_score=mlp.group_score, correction_bias=mlp.correction_bias,
        bias=mlp.router_bias, expert_capacity=mlp.expert_capacity,
    )  # fmt: skip
    return MixtureOfExperts(
        router, size, mlp.moe_intermediate_size, mlp.hidden_act, gated=mlp.gated, bias=mlp.bias,
        shared_experts=MLP(size, shared, mlp.hidden_act, gated=mlp.gated, bias=mlp.bias) if shared else None,
        shared_expert_gate=mlp.shared_expert_gate, swiglu_limit=mlp.swiglu_limit,
    )  # fmt: skip


FEED_FORWARD: dict[str, Callable[[ModelConfig, FeedForward], nn.Module]] = {"dense": _mlp, "moe": _moe}
"""Builders of feed-forward nets, by `kind`."""
