"""What a model is, as values: a few slots filled by unions. Leaf names are Hugging Face's.

The configuration knows no module; `models/build.py` maps slots to modules. Special-token ids are plain
integers here, and loading checks that they agree with the tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config

Positive = Annotated[int, Field(gt=0)]


class LearnedPositions(Config):
    """A trained vector per position, added to the embeddings (GPT-2)."""

    kind: Literal["learned"] = "learned"


class RopeScaling(Config):
    """Llama 3's frequency-dependent stretching of RoPE (Llama 3.1 model card)."""

    rope_type: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: Positive = 8192


class RotaryPositions(Config):
    """Rotary position embedding, half-split layout (Su et al., 2021, arXiv:2104.09864)."""

    kind: Literal["rope"] = "rope"
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: RopeScaling | None = None


Positions = Annotated[LearnedPositions | RotaryPositions, Field(discriminator="kind")]


class AttentionConfig(Config):
    """Multi-head attention with grouped keys and values (GQA, arXiv:2305.13245)."""

    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """RMS-normalize each query and key head before the rotation (Qwen3)."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class MLPConfig(Config):
    """Position-wise feed-forward net; gated means `down(act(gate(x)) * up(x))` (arXiv:2002.05202)."""

    intermediate_size: Positive
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    gated: bool = True
    bias: bool = False


class NormConfig(Config):
    """RMSNorm (arXiv:1910.07467) or LayerNorm."""

    kind: Literal["rms", "layer"] = "rms"
    eps: Annotated[float, Field(gt=0)] = 1e-5


class StackConfig(Config):
    """A column of identical pre-norm blocks and the norm after the last."""

    num_hidden_layers: Positive
    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()


class ModelConfig(Config):
    """A decoder-only Transformer."""

    family: str = "llama"
    """Row of `models.families.FAMILIES`: how this model is written as a Hugging Face folder."""
    vocab_size: Positive
    hidden_size: Positive
    max_position_embeddings: Positive
    positions: Positions = RotaryPositions()
    decoder: StackConfig
    tie_word_embeddings: bool = True
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.positions, RotaryPositions) and self.decoder.attention.head_dim % 2:
            raise ValueError(f"head_dim {self.decoder.attention.head_dim} must be even for rotary positions")
        for name, ids in (("bos_token_id", (self.bos_token_id,)), ("eos_token_ids", self.eos_token_ids)):
            if any(i is not None and not 0 <= i < self.vocab_size for i in ids):
                raise ValueError(f"{name} {ids} is outside the vocabulary of {self.vocab_size}")
        return self
