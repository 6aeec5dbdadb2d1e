"""What fills the slots of a stack: mixers, feed-forward nets, norms, residual paths.

Values only, each a union member told apart by `kind`; leaf names are Hugging Face's. Positions and heads have files
of their own. Knows no module and no family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from lmworks.core.config import Config

Positive = Annotated[int, Field(gt=0)]
Size = Annotated[int, Field(ge=0)]
MOST = 10_000
"""Layers of a stack, experts of a layer: their rows and rules are listed before anything shows that they are absurd."""
Count = Annotated[int, Field(gt=0, le=MOST)]
HeadDim = Annotated[int, Field(gt=0, le=65_536)]
"""Each coordinate's rotary speed is computed when a model is built."""
PositiveFloat = Annotated[float, Field(gt=0)]
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2"]


def _kind_or(default: str) -> Callable[[Any], str]:
    """Tells the members of a union apart by `kind`, which the commonest may leave out."""
    return lambda value: value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)


class AttentionConfig(Config):
    """Softmax attention with grouped keys and values (MHA, MQA, GQA: arXiv:2305.13245)."""

    kind: Literal["softmax"] = "softmax"
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: HeadDim
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["none", "per_head", "full"] = "none"
    """Normalize queries and keys before the rotation: each head (Qwen3) or the whole projection (OLMo-2)."""
    scale: PositiveFloat | None = None
    """Multiplies the scores; None is head_dim^-0.5."""
    sliding_window: Positive | None = None
    """Only the last so many tokens are seen, the token itself included."""
    attn_logit_softcapping: PositiveFloat | None = None
    """Scores become cap·tanh(score/cap) (Gemma 2, arXiv:2408.00118)."""
    sinks: bool = False
    """A trained score per head that takes weight and gives no value (gpt-oss)."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class MLAConfig(Config):
    """Multi-head latent attention: keys and values from one cached latent (DeepSeek-V2, arXiv:2405.04434)."""

    kind: Literal["mla"] = "mla"
    num_attention_heads: Positive
    q_lora_rank: Positive | None = None
    """None projects queries directly."""
    kv_lora_rank: Positive
    qk_nope_head_dim: Positive
    qk_rope_head_dim: HeadDim
    v_head_dim: Positive
    attention_bias: bool = False
    scale: PositiveFloat | None = None
    """Multiplies the scores; None is (qk_nope_head_dim + qk_rope_head_dim)^-0.5."""


class XLAttentionConfig(Config):
    """Transformer-XL's relative attention, as XLNet uses it with two streams (arXiv:1906.08237).

    Positions are "relative_sinusoidal".
    """

    kind: Literal["xl"] = "xl"
    num_attention_heads: Positive
    head_dim: HeadDim


class BlockSparseAttentionConfig(Config):
    """A window and global tokens (Longformer, arXiv:2004.05150); also random blocks (BigBird, arXiv:2007.14062)."""

    kind: Literal["block_sparse"] = "block_sparse"
    num_attention_heads: Positive
    head_dim: HeadDim
    layout: Literal["longformer", "bigbird"] = "longformer"
    window: Size = 256
    """Tokens that Longformer sees on either side."""
    num_global_tokens: Size = 1
    """Longformer's: the first so many tokens see all and are seen by all."""
    block_size: Positive = 64
    """BigBird's grain: it sees neighboring blocks, the first and the last."""
    num_random_blocks: Size = 3
    seed: Size = 0


class LSHAttentionConfig(Config):
    """Attention among tokens of one hash bucket; queries and keys share a projection (Reformer, arXiv:2001.04451)."""

    kind: Literal["lsh"] = "lsh"
    num_attention_heads: Positive
    head_dim: HeadDim
    num_buckets: Positive = 16
    num_hashes: Positive = 2
    chunk_length: Positive = 64
    seed: Size = 0


class LinearAttentionConfig(Config):
    """Attention by a feature map, linear in length (arXiv:2006.16236; Performer, arXiv:2009.14794)."""

    kind: Literal["linear"] = "linear"
    num_attention_heads: Positive
    head_dim: HeadDim
    feature_map: Literal["elu", "relu", "favor"] = "elu"
    num_features: Positive = 256
    """Random features of FAVOR+."""
    seed: Size = 0


class LinformerConfig(Config):
    """Keys and values projected along the length to a fixed number; not causal (arXiv:2006.04768)."""

    kind: Literal["linformer"] = "linformer"
    num_attention_heads: Positive
    head_dim: HeadDim
    projected_length: Positive = 256


Attention = Annotated[
    Annotated[AttentionConfig, Tag("softmax")]
    | Annotated[MLAConfig, Tag("mla")]
    | Annotated[XLAttentionConfig, Tag("xl")]
    | Annotated[BlockSparseAttentionConfig, Tag("block_sparse")]
    | Annotated[LSHAttentionConfig, Tag("lsh")]
    | Annotated[LinearAttentionConfig, Tag("linear")]
    | Annotated[LinformerConfig, Tag("linformer")],
    Discriminator(_kind_or("softmax")),
]


class MLPConfig(Config):
    """Position-wise feed-forward net; gated means `down(act(gate(x)) * up(x))` (arXiv:2002.05202)."""

    kind: Literal["dense"] = "dense"
    intermediate_size: Positive
    hidden_act: Activation = "silu"
    gated: bool = True
    bias: bool = False


class MoEConfig(Config):
    """A mixture of experts (Switch, arXiv:2101.03961; Mixtral, arXiv:2401.04088; DeepSeek-V3, arXiv:2412.19437)."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    num_experts_per_tok: Positive
    moe_intermediate_size: Positive
    hidden_act: Activation = "silu"
    gated: bool = True
    bias: bool = False
    swiglu_limit: PositiveFloat | None = None
    """Gates are at most this, ups within it and then one more (gpt-oss)."""
    router_bias: bool = False
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = True
    """The weights of the chosen experts sum to one."""
    routed_scaling_factor: PositiveFloat = 1.0
    n_group: Positive = 1
    topk_group: Positive = 1
    """Experts are chosen from the best so many of `n_group` groups."""
    group_score: Literal["max", "top2_sum"] = "max"
    correction_bias: bool = False
    """A score per expert that steers the choice and not the weight, moved by the balance (arXiv:2408.15664)."""
    shared_intermediate_size: Size = 0
    """Of the expert that every token takes; 0 has none."""
    shared_expert_gate: bool = False
    router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    router_z_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    expert_capacity: Positive | None = None
    """Tokens of a document that an expert takes at most (Switch); None drops none."""

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        if self.num_experts % self.n_group or self.topk_group > self.n_group:
            raise ValueError(
                f"n_group {self.n_group} must divide num_experts {self.num_experts} and be at least "
                f"topk_group {self.topk_group}"
            )
        available = self.num_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > available:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} exceeds the {available} experts eligible")
        return self


FeedForward = Annotated[
    Annotated[MLPConfig, Tag("dense")] | Annotated[MoEConfig, Tag("moe")], Discriminator(_kind_or("dense"))
]


class NormConfig(Config):
    """RMSNorm (arXiv:1910.07467), LayerNorm, or BatchNorm over all tokens, for comparison."""

    kind: Literal["rms", "layer", "batch"] = "rms"
    eps: PositiveFloat = 1e-5
    bias: bool = True
    """Of LayerNorm."""
    affine: bool = True
    """Whether there are weights at all."""
    unit_offset: bool = False
    """The weight is stored less one (Gemma)."""


class ResidualConfig(Config):
    """What happens to a branch before it is added."""

    multiplier: float = 1.0
    """A constant factor (Granite)."""
    gate: Literal["none", "rezero", "layerscale"] = "none"
    """A trained factor: one number from zero (ReZero, arXiv:2003.04887) or a vector (LayerScale, arXiv:2103.17239)."""
    layerscale_init: PositiveFloat = 1e-4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layerdrop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of leaving a whole layer out while training (LayerDrop, arXiv:1909.11556)."""


class EmbedConfig(Config):
    """From token ids to the first hidden states."""

    multiplier: float = 1.0
    embedding_size: Positive | None = None
    """Of the vectors of tokens, positions and segments, where their sum is projected to the hidden size (ALBERT)."""
    type_vocab_size: Size = 0
    """Segments told apart by a vector of their own (BERT)."""
    norm: NormConfig | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
