"""From the attention's slot to modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lmworks.kernels.masks import self_attention_mask
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import YarnScaling
from lmworks.models.slots import Attention as AttentionSlot
from lmworks.models.slots import (
    AttentionConfig,
    BlockSparseAttentionConfig,
    LinearAttentionConfig,
    LinformerConfig,
    LSHAttentionConfig,
    MLAConfig,
    NormConfig,
    XLAttentionConfig,
)
from lmworks.nn import mixers, rope
from lmworks.nn.attention import Attention
from lmworks.nn.mla import MultiheadLatentAttention
from lmworks.nn.norms import build_norm
from lmworks.nn.xl_attention import XLAttention


def norm_of(norm: NormConfig, size: int) -> nn.Module:
    """The norm that a slot describes, over `size` numbers."""
    return build_norm(norm.kind, size, norm.eps, bias=norm.bias, affine=norm.affine, unit_offset=norm.unit_offset)


def attention_of(
    config: ModelConfig, stack: StackConfig, attention: AttentionSlot, index: int, *, cross: bool = False
) -> nn.Module:
    """Softmax attention, of a token to its own document or to the encoder's output."""
    assert isinstance(attention, AttentionConfig), "the table of mixers matches kinds to builders"
    heads, kv_heads, head_dim = attention.num_attention_heads, attention.num_key_value_heads, attention.head_dim
    qk_norms = None
    if attention.qk_norm != "none":
        per_head = attention.qk_norm == "per_head"
        sizes = (head_dim, head_dim) if per_head else (heads * head_dim, kv_heads * head_dim)
        qk_norms = (norm_of(stack.norm, sizes[0]), norm_of(stack.norm, sizes[1]))
    return Attention(
        index, config.hidden_size, heads, kv_heads, head_dim,
        mask=self_attention_mask(causal=stack.causal, window=attention.sliding_window),
        scale=attention.scale, softcap=attention.attn_logit_softcapping, qkv_bias=attention.qkv_bias,
        o_bias=attention.o_bias, sinks=attention.sinks, qk_norms=qk_norms, norm_heads=attention.qk_norm != "full",
        cross=cross,
    )  # fmt: skip


def _mla(config: ModelConfig, stack: StackConfig, attention: AttentionSlot, index: int) -> nn.Module:
    assert isinstance(attention, MLAConfig), "the table of mixers matches kinds to builders"
    layer = stack.layer(index)
    scale = attention.scale or (attention.qk_nope_head_dim + attention.qk_rope_head_dim) ** -0.5
    scaling = getattr(layer.positions or config.positions, "rope_scaling", None)
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim:
        # Queries and keys are sharpened in all coordinates, not only in those that turn.
        scale *= rope.yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return MultiheadLatentAttention(
        index, config.hidden_size, attention.num_attention_heads, q_lora_rank=attention.q_lora_rank,
        kv_lora_rank=attention.kv_lora_rank, qk_nope_head_dim=attention.qk_nope_head_dim,
        qk_rope_head_dim=attention.qk_rope_head_dim, v_head_dim=attention.v_head_dim,
        mask=self_attention_mask(causal=stack.causal), scale=scale, bias=attention.attention_bias,
    )  # fmt: skip


def _xl(config: ModelConfig, stack: StackConfig, attention: AttentionSlot, index: int) -> nn.Module:
    assert isinstance(attention, XLAttentionConfig), "the table of mixers matches kinds to builders"
    mask = self_attention_mask(causal=stack.causal)
    return XLAttention(index, config.hidden_size, attention.num_attention_heads, attention.head_dim, mask=mask)


def _mixed(config: ModelConfig, stack: StackConfig, attention: AttentionSlot, index: int) -> nn.Module:
    causal = stack.causal
    match attention:
        case BlockSparseAttentionConfig(layout="longformer"):
            mix = mixers.longformer(
                window=attention.window, num_global_tokens=attention.num_global_tokens,
                block_size=attention.block_size, causal=causal,
            )  # fmt: skip
        case BlockSparseAttentionConfig():
            mix = mixers.bigbird(
                block_size=attention.block_size, num_random_blocks=attention.num_random_blocks, seed=attention.seed,
                causal=causal,
            )  # fmt: skip
        case LSHAttentionConfig():
            mix = mixers.lsh(
                num_buckets=attention.num_buckets, num_hashes=attention.num_hashes,
                chunk_length=attention.chunk_length, seed=attention.seed, causal=causal,
            )  # fmt: skip
        case LinearAttentionConfig():
            mix = mixers.linear(
                attention.feature_map, num_features=attention.num_features, seed=attention.seed, causal=causal
            )
        case LinformerConfig():
            mix = mixers.Linformer(attention.projected_length, config.max_position_embeddings)
        case _:
            raise AssertionError("the table of mixers matches kinds to builders")
    return mixers.MixedAttention(
        config.hidden_size, attention.num_attention_heads, attention.head_dim, mix,
        shared_query_key=attention.kind == "lsh",
    )  # fmt: skip


MIXERS: dict[str, Callable[[ModelConfig, StackConfig, AttentionSlot, int], nn.Module]] = {
    "softmax": attention_of,
    "mla": _mla,
    "xl": _xl,
    "block_sparse": _mixed,
    "lsh": _mixed,
    "linear": _mixed,
    "linformer": _mixed,
}
"""Builders of what mixes tokens, by `kind`."""
