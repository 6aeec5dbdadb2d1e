"""A model in a few numbers: the sizes a person chooses, the rest derived as its family does.

Knows no training.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.models.config import (
    AttentionConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RotaryPositions,
    StackConfig,
)

Positive = Annotated[int, Field(gt=0)]


class ModelPreset(Config):
    """Family and sizes of a model to be trained from random weights."""

    preset: Literal["llama", "gpt2"] = "llama"
    """`llama`: RMSNorm, rotary positions, gated SiLU. `gpt2`: LayerNorm, learned positions, GELU, biases."""
    hidden_size: Positive = 256
    num_hidden_layers: Positive = 6
    num_attention_heads: Positive | None = None
    """By default one head for every 64 of `hidden_size`, at least one."""
    num_key_value_heads: Positive | None = None
    """By default as many as attention heads."""
    intermediate_size: Positive | None = None
    """By default 8/3 of `hidden_size` rounded up to a multiple of 64 (llama), 4 times (gpt2)."""
    max_position_embeddings: Positive | None = None
    """Longest context; by default the training sequence length."""
    tie_word_embeddings: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Of llama."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.heads}")
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
        """The complete model configuration.

        Raises:
            ConfigError: the sizes do not make a model.
        """
        llama = self.preset == "llama"
        inner = -(-8 * self.hidden_size // (3 * 64)) * 64 if llama else 4 * self.hidden_size
        values = ModelConfig(
            family=self.preset,
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            max_position_embeddings=self.max_position_embeddings or sequence_length,
            positions=RotaryPositions(rope_theta=self.rope_theta) if llama else LearnedPositions(),
            decoder=StackConfig(
                num_hidden_layers=self.num_hidden_layers,
                attention=AttentionConfig(
                    num_attention_heads=self.heads,
                    num_key_value_heads=self.num_key_value_heads or self.heads,
                    head_dim=self.hidden_size // self.heads,
                    qkv_bias=not llama,
                    o_bias=not llama,
                ),
                mlp=MLPConfig(
                    intermediate_size=self.intermediate_size or inner,
                    hidden_act="silu" if llama else "gelu_pytorch_tanh",
                    gated=llama,
                    bias=not llama,
                ),
                norm=NormConfig(kind="rms" if llama else "layer"),
            ),
            tie_word_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
            bos_token_id=bos_token_id,
            eos_token_ids=eos_token_ids,
        )
        return values
