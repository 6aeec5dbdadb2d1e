"""A model in a few numbers: the sizes a person chooses, the rest derived as its family does.

Knows no training.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import LearnedPositions, RotaryPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, NormConfig

Positive = Annotated[int, Field(gt=0)]


class ModelPreset(Config):
    """Family and sizes of a model to be trained from random weights."""

    preset: Literal["llama", "qwen3", "gpt2"] = "llama"
    """`llama`: RMSNorm, rotary positions, gated SiLU. `qwen3`: the same with normalized queries and keys.
    `gpt2`: LayerNorm, learned positions, GELU, biases."""
    hidden_size: Positive = 256
    num_hidden_layers: Positive = 6
    num_attention_heads: Positive | None = None
    """By default one head for every 64 of `hidden_size`, at least one."""
    num_key_value_heads: Positive | None = None
    """By default as many as attention heads."""
    intermediate_size: Positive | None = None
    """By default 8/3 of `hidden_size` rounded up to a multiple of 64 (4 times for gpt2)."""
    max_position_embeddings: Positive | None = None
    """Longest context; by default the training sequence length."""
    tie_word_embeddings: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Of rotary positions."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.heads}")
        if self.preset != "gpt2" and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"head size {self.hidden_size // self.heads} (hidden_size {self.hidden_size} / "
                f"num_attention_heads {self.heads}) must be even for rotary positions"
            )
        if self.preset == "gpt2" and (self.num_key_value_heads or self.heads) != self.heads:
            raise ValueError("gpt2 has as many key-value heads as attention heads")
        if self.heads % (self.num_key_value_heads or self.heads):
            raise ValueError(
                f"num_attention_heads {self.heads} is not a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @property
    def heads(self) -> int:
        """Attention heads, chosen or derived."""
        return self.num_attention_heads or max(1, self.hidden_size // 64)

    def to_model_config(
        self, *, vocab_size: int, sequence_length: int, bos_token_id: int | None, eos_token_ids: tuple[int, ...]
    ) -> ModelConfig:
        """The complete model configuration, for a vocabulary and a training sequence length."""
        gpt2 = self.preset == "gpt2"
        inner = 4 * self.hidden_size if gpt2 else -(-8 * self.hidden_size // (3 * 64)) * 64
        return ModelConfig(
            family=self.preset,
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            max_position_embeddings=self.max_position_embeddings or sequence_length,
            positions=LearnedPositions() if gpt2 else RotaryPositions(rope_theta=self.rope_theta),
            decoder=StackConfig(
                num_hidden_layers=self.num_hidden_layers,
                attention=AttentionConfig(
                    num_attention_heads=self.heads,
                    num_key_value_heads=self.num_key_value_heads or self.heads,
                    head_dim=self.hidden_size // self.heads,
                    qkv_bias=gpt2,
                    o_bias=gpt2,
                    qk_norm="per_head" if self.preset == "qwen3" else "none",
                ),
                mlp=MLPConfig(
                    intermediate_size=self.intermediate_size or inner,
                    hidden_act="gelu_pytorch_tanh" if gpt2 else "silu",
                    gated=not gpt2,
                    bias=gpt2,
                ),
                norm=NormConfig(kind="layer" if gpt2 else "rms"),
            ),
            tie_word_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
            bos_token_id=bos_token_id,
            eos_token_ids=eos_token_ids,
        )
