"""A model in a few numbers: the sizes a person chooses, the rest derived as its family does.

Knows no training.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.families import family_named
from lmworks.models.position_slots import LearnedPositions, RotaryPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, NormConfig

Positive = Annotated[int, Field(gt=0)]
GATED = ("llama", "qwen3", "mixtral")
"""Presets whose feed-forward nets have a gate, and are narrower for it."""
PLAIN = ("gpt2", "bert", "electra", "t5", "xlnet")
"""Presets with as many key-value heads as heads, and without rotary positions."""


class ModelPreset(Config):
    """Family and sizes of a model to be trained from random weights."""

    preset: Literal["llama", "qwen3", "gpt2", "mixtral", "bert", "electra", "t5", "xlnet"] = "llama"
    """Decoders: `llama`: RMSNorm, rotary positions, gated SiLU. `qwen3`: the same with normalized queries and keys.
    `gpt2`: LayerNorm, learned positions, GELU, biases. `mixtral`: llama with a mixture of experts. Encoders: `bert`,
    `electra` for replaced tokens, `xlnet` for permutations. `t5`: encoder and decoder."""
    hidden_size: Positive = 256
    num_hidden_layers: Positive = 6
    num_attention_heads: Positive | None = None
    """By default one head for every 64 of `hidden_size`, at least one."""
    num_key_value_heads: Positive | None = None
    """By default as many as attention heads."""
    intermediate_size: Positive | None = None
    """By default 8/3 of `hidden_size` rounded up to a multiple of 64; 4 times where there is no gate. Of one expert,
    where there are several."""
    max_position_embeddings: Positive | None = None
    """Longest context; by default the training sequence length."""
    tie_word_embeddings: bool = True
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Of rotary positions."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    num_experts: Positive = 8
    """Of mixtral; in every layer."""
    num_experts_per_tok: Positive = 2
    """Of mixtral; that a token is routed to."""
    router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.01
    """Of mixtral; weight of the load-balancing loss (arXiv:2101.03961)."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.heads}")
        if self.preset not in PLAIN and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"head size {self.hidden_size // self.heads} (hidden_size {self.hidden_size} / "
                f"num_attention_heads {self.heads}) must be even for rotary positions"
            )
        if self.preset in PLAIN and (self.num_key_value_heads or self.heads) != self.heads:
            raise ValueError(f"{self.preset} has as many key-value heads as attention heads")
        if self.preset == "mixtral" and self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}")
        if self.heads % (self.num_key_value_heads or self.heads):
            raise ValueError(
                f"num_attention_heads {self.heads} is not a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @property
    def heads(self) -> int:
        """Attention heads, chosen or derived."""
        return self.num_attention_heads or max(1, self.hidden_size // 64)

    @property
    def shape(self) -> str:
        """Which stacks it has, in the words of `objective_choice.SHAPES`."""
        others = {"bert": "encoder", "electra": "encoder", "t5": "encoder-decoder", "xlnet": "two-stream encoder"}
        return others.get(self.preset, "decoder")

    @property
    def inner_size(self) -> int:
        """Of the feed-forward nets, chosen or derived."""
        usual = -(-8 * self.hidden_size // (3 * 64)) * 64 if self.preset in GATED else 4 * self.hidden_size
        return self.intermediate_size or usual

    def to_model_config(
        self, *, vocab_size: int, sequence_length: int, bos_token_id: int | None, eos_token_ids: tuple[int, ...],
        head: str = "causal_lm",
    ) -> ModelConfig:  # fmt: skip
        """The complete model configuration, for a vocabulary and a training sequence length.

        Args:
            vocab_size: entries of the tokenizer.
            sequence_length: longest document in training.
            bos_token_id: what a document begins with.
            eos_token_ids: what ends one.
            head: kind of head that the objective trains.

        Raises:
            ConfigError: the family has no such head.
        """
        if self.preset not in ("llama", "qwen3", "gpt2"):
            return self._by_family(vocab_size, sequence_length, bos_token_id, eos_token_ids, head)
        if head != "causal_lm":
            raise self._no_head(head)
        gpt2 = self.preset == "gpt2"
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
                    intermediate_size=self.inner_size,
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

    def _by_family(
        self, vocab_size: int, sequence_length: int, bos_token_id: int | None, eos_token_ids: tuple[int, ...], head: str
    ) -> ModelConfig:
        """By what the family's `config.json` would say."""
        family = family_named(self.preset)
        named = next((name for name, spec in family.architectures.items() if spec["kind"] == head), None)
        if named is None:
            raise self._no_head(head)
        longest = self.max_position_embeddings or sequence_length
        size, layers, heads, inner = self.hidden_size, self.num_hidden_layers, self.heads, self.inner_size
        usual = {
            "hidden_size": size, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner,
            "max_position_embeddings": longest,
        }  # fmt: skip
        sizes: dict[str, dict[str, Any]] = {
            "bert": usual,
            "electra": usual | {"embedding_size": size},
            "mixtral": usual
            | {
                "num_key_value_heads": self.num_key_value_heads or heads, "rope_theta": self.rope_theta,
                "num_local_experts": self.num_experts, "num_experts_per_tok": self.num_experts_per_tok,
                "router_aux_loss_coef": self.router_aux_loss_coef,
            },
            "t5": {
                "d_model": size, "num_layers": layers, "num_heads": heads, "d_kv": size // heads, "d_ff": inner,
                "n_positions": longest, "dropout_rate": 0.0, "feed_forward_proj": "relu",
            },
            "xlnet": {
                "d_model": size, "n_layer": layers, "n_head": heads, "d_inner": inner, "n_positions": longest,
                "dropout": 0.0,
            },
        }  # fmt: skip
        pad = bos_token_id if bos_token_id is not None else next(iter(eos_token_ids), 0)
        common = {
            "vocab_size": vocab_size, "tie_word_embeddings": self.tie_word_embeddings, "bos_token_id": bos_token_id,
            "initializer_range": self.initializer_range, "eos_token_id": list(eos_token_ids), "architectures": [named],
        } | ({"pad_token_id": pad} if self.preset != "mixtral" else {})  # fmt: skip
        if self.preset == "t5":
            common["decoder_start_token_id"] = pad
        return family.config_from_hf(common | sizes[self.preset])

    def _no_head(self, head: str) -> ConfigError:
        return ConfigError(
            f"a {self.preset} model has no {head} head, which the objective trains",
            "Choose a model of the kind that the objective names, or another objective",
        )
