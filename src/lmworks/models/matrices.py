"""Every matrix of a model as values, by the part of the work it does. What `accounting.py` counts; knows no module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from lmworks.models.config import LayerConfig, ModelConfig, StackConfig
from lmworks.models.head_slots import (
    CausalLMHead,
    DenseHead,
    EmbeddingHead,
    LabeledHead,
    MaskedLMHead,
    NextSentenceHead,
    ProjectionHead,
    RewardHead,
)
from lmworks.models.slots import (
    Attention,
    AttentionConfig,
    FeedForward,
    LinformerConfig,
    MLAConfig,
    MLPConfig,
    MoEConfig,
    XLAttentionConfig,
)

Part = Literal["embedding", "attention", "cross_attention", "source", "mlp", "router", "experts", "vocabulary", "head"]
"""What a matrix is for; `source` makes the keys and values of cross-attention, once per token of the encoder."""


class Matrix(NamedTuple):
    """Equal matrices, [outputs, inputs] each."""

    part: Part
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    used: int = 1
    """Of the copies, how many a token is multiplied with."""
    linear: bool = True
    """It is a linear map that can be quantized, not part of a stack of experts, a router or a mixing along length."""

    @property
    def size(self) -> int:
        """Numbers in one of them, which are its multiplications too."""
        return self.inputs * self.outputs


def different_layers(stack: StackConfig) -> list[tuple[Attention, FeedForward, LayerConfig]]:
    """The layers that have weights of their own, in order."""
    layers = [stack.layer(i) for i in range(stack.num_hidden_groups or stack.num_hidden_layers)]
    return [(layer.attention or stack.attention, layer.mlp or stack.mlp, layer) for layer in layers]


def stack_matrices(config: ModelConfig, stack: StackConfig) -> Iterator[Matrix]:
    """All of a stack; of patches too."""
    if (vision := config.vision) is not None and stack is vision.stack:
        pixels = vision.num_channels * vision.patch_size**2
        yield Matrix("embedding", pixels, vision.hidden_size, vision.patch_bias, linear=False)
    if config.embed.embedding_size:
        yield Matrix("embedding", config.embed.embedding_size, config.hidden_size, bias=True)
    for attention, mlp, _ in different_layers(stack):
        yield from attention_matrices(config, attention)
        if stack.cross_attention is not None:
            query, key, value, out = attention_matrices(config, stack.cross_attention)
            yield from (m._replace(part="cross_attention") for m in (query, out))
            yield from (m._replace(part="source") for m in (key, value))
        yield from feed_forward_matrices(config, mlp)


def attention_matrices(config: ModelConfig, attention: Attention) -> Iterator[Matrix]:
    """Queries' first, the output's last."""
    hidden, heads = config.hidden_size, attention.num_attention_heads
    match attention:
        case AttentionConfig(head_dim=size, num_key_value_heads=kv_heads):
            for outputs in (heads * size, kv_heads * size, kv_heads * size):
                yield Matrix("attention", hidden, outputs, attention.qkv_bias)
            yield Matrix("attention", heads * size, hidden, attention.o_bias)
        case MLAConfig(q_lora_rank=query_rank, kv_lora_rank=rank, attention_bias=bias) as a:
            query = heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
            if query_rank is None:
                yield Matrix("attention", hidden, query)
            else:
                yield Matrix("attention", hidden, query_rank, bias)
                yield Matrix("attention", query_rank, query)
            yield Matrix("attention", hidden, rank + a.qk_rope_head_dim, bias)
            yield Matrix("attention", rank, heads * (a.qk_nope_head_dim + a.v_head_dim))
            yield Matrix("attention", heads * a.v_head_dim, hidden, bias)
        case _:
            for _ in range(2 if attention.kind == "lsh" else 3):
                yield Matrix("attention", hidden, heads * attention.head_dim)
            if isinstance(attention, XLAttentionConfig):  # of distances
                yield Matrix("attention", hidden, heads * attention.head_dim, linear=False)
            if isinstance(attention, LinformerConfig):
                length = config.max_position_embeddings
                yield Matrix("attention", length, attention.projected_length, copies=2, used=0, linear=False)
            yield Matrix("attention", heads * attention.head_dim, hidden)


def feed_forward_matrices(config: ModelConfig, mlp: FeedForward) -> Iterator[Matrix]:
    """A dense net, or router, experts and what every token takes beside them."""
    hidden = config.hidden_size
    if isinstance(mlp, MLPConfig):
        yield from _net(Matrix("mlp", hidden, mlp.intermediate_size, mlp.bias), mlp)
        return
    yield Matrix("router", hidden, mlp.num_experts, mlp.router_bias, linear=False)
    expert = Matrix("experts", hidden, mlp.moe_intermediate_size, mlp.bias)
    yield from _net(expert._replace(copies=mlp.num_experts, used=mlp.num_experts_per_tok, linear=False), mlp)
    if mlp.shared_intermediate_size:
        yield from _net(Matrix("mlp", hidden, mlp.shared_intermediate_size, mlp.bias), mlp)
    if mlp.shared_expert_gate:
        yield Matrix("router", hidden, 1)


def _net(inward: Matrix, mlp: MLPConfig | MoEConfig) -> Iterator[Matrix]:
    yield from [inward] * (2 if mlp.gated else 1)
    yield inward._replace(inputs=inward.outputs, outputs=inward.inputs)


def head_matrices(config: ModelConfig) -> Iterator[Matrix]:
    """After the last layer; those that judge or pool a document's first token multiply no other."""
    head, size = config.head, config.hidden_size
    inner = head_width(config)
    if isinstance(head, DenseHead) and head.dense_act != "none":
        yield Matrix("head", size, inner, head.dense_bias)
    if isinstance(head, CausalLMHead | MaskedLMHead):
        yield Matrix("vocabulary", config.embed.embedding_size or size, config.vocab_size, bool(head.bias))
    elif isinstance(head, LabeledHead | RewardHead):
        yield Matrix("head", inner, head.num_labels if isinstance(head, LabeledHead) else 1, head.bias)
    elif isinstance(head, ProjectionHead):
        yield Matrix("head", size, head.projection_dim, used=0)
    judges = isinstance(head, NextSentenceHead) or (isinstance(head, MaskedLMHead) and head.next_sentence)
    if judges or (isinstance(head, EmbeddingHead) and head.pooler):
        yield Matrix("head", size, size, bias=True, used=0)
    if judges:
        yield Matrix("head", size, 2, bias=True, used=0)


def head_width(config: ModelConfig) -> int:
    """What the head's dense layer and its norm give."""
    narrow = config.embed.embedding_size if isinstance(config.head, MaskedLMHead) else None
    return narrow or config.hidden_size
