"""What a model is, as values: a few slots filled by unions. Leaf names are Hugging Face's.

The configuration knows no module; `models/build.py` maps slots to modules. Special-token ids are plain
integers here, and loading checks that they agree with the tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.models.slots import (
    Attention,
    AttentionConfig,
    CausalLMHead,
    EmbedConfig,
    FeedForward,
    Head,
    LinformerConfig,
    LongRopeScaling,
    MLAConfig,
    NormConfig,
    Positions,
    Positive,
    RelativeSinusoidalPositions,
    ResidualConfig,
    RotaryPositions,
    SinusoidalPositions,
    XLAttentionConfig,
)

Placement = Literal["pre", "post", "sandwich", "reordered", "parallel", "parallel_shared"]


class LayerConfig(Config):
    """What a layer named in the pattern has instead of its stack's; None keeps the stack's."""

    attention: Attention | None = None
    mlp: FeedForward | None = None
    positions: Positions | None = None


class StackConfig(Config):
    """A column of blocks and the norm after the last."""

    num_hidden_layers: Positive
    num_hidden_groups: Positive | None = None
    """Different layers there are, each applied several times in a row (ALBERT, arXiv:1909.11942); None: all are."""
    attention: Attention
    mlp: FeedForward
    cross_attention: AttentionConfig | None = None
    """To the encoder's output, between attention and feed-forward net."""
    causal: bool = True
    norm: NormConfig = NormConfig()
    placement: Placement = "pre"
    """Of the norms: before a branch (pre), after its sum (post, arXiv:1706.03762), around it (sandwich), on its
    output (reordered, OLMo-2), or before two branches that run side by side (parallel), with one norm for both
    (parallel_shared, GPT-J)."""
    first_norm: bool = True
    """Whether the first layer normalizes its input; ModernBERT's takes the embeddings' norm as it is."""
    final_norm: bool = True
    residual: ResidualConfig = ResidualConfig()
    pattern: str = ""
    """One letter a layer, tiled over the layers; letters without an entry in `layers` are the stack as it stands."""
    layers: dict[Annotated[str, Field(pattern="^[A-Za-z]$")], LayerConfig] = {}

    @model_validator(mode="after")
    def _named(self) -> Self:
        if unused := sorted(set(self.layers) - set(self.pattern)):
            raise ValueError(f"layers {unused} do not occur in the pattern {self.pattern!r}")
        groups = self.num_hidden_groups
        if groups is not None and (self.num_hidden_layers % groups or self.causal):
            raise ValueError(
                f"num_hidden_groups {groups} must divide num_hidden_layers {self.num_hidden_layers}, and the stack "
                "must not be causal: applications of one layer would share a cache"
            )
        return self

    def layer(self, index: int) -> LayerConfig:
        """Layer `index`; `positions` is None where they are the model's."""
        letter = self.pattern[index % len(self.pattern)] if self.pattern else ""
        chosen = self.layers.get(letter, LayerConfig())
        return LayerConfig(
            attention=chosen.attention or self.attention, mlp=chosen.mlp or self.mlp, positions=chosen.positions
        )

    def kinds(self) -> tuple[tuple[LayerConfig, int], ...]:
        """Every different layer and how often it occurs."""
        letters = [self.pattern[i % len(self.pattern)] if self.pattern else "" for i in range(self.num_hidden_layers)]
        return tuple((self.layer(letters.index(letter)), letters.count(letter)) for letter in dict.fromkeys(letters))


class ModelConfig(Config):
    """A Transformer: decoder, encoder, or both."""

    family: str = "llama"
    """Row of `models.families.FAMILIES`: how this model is written as a Hugging Face folder."""
    vocab_size: Positive
    hidden_size: Positive
    max_position_embeddings: Positive
    embed: EmbedConfig = EmbedConfig()
    positions: Positions = RotaryPositions()
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    head: Head = CausalLMHead()
    tie_word_embeddings: bool = True
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    initialization: Literal["depth_scaled", "normal", "t_fixup"] = "depth_scaled"
    """Of projections back into the residual stream: std/√(2·layers) (GPT-2), the same as all, or T-Fixup's
    (Huang et al., 2020), which needs no warm-up and no norm."""
    pad_token_id: int | None = None
    """For other readers of the folder: nothing is padded here."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    decoder_start_token_id: int | None = None
    """What a decoder with an encoder begins with."""
    forced_bos_token_id: int | None = None
    """What it says first, whatever its logits: BART was tuned so, mBART names the language."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.stacks:
            raise ValueError("a model needs an encoder, a decoder or both")
        if self.decoder and (self.decoder.cross_attention is None) != (self.encoder is None):
            raise ValueError("a decoder has cross_attention exactly when there is an encoder")
        for stack in self.stacks:
            for layer, _ in stack.kinds():
                self._check_layer(layer, causal=stack.causal)
        ids = {
            "bos_token_id": (self.bos_token_id,),
            "eos_token_ids": self.eos_token_ids,
            "decoder_start_token_id": (self.decoder_start_token_id,),
            "forced_bos_token_id": (self.forced_bos_token_id,),
        }
        for name, values in ids.items():
            if any(i is not None and not 0 <= i < self.vocab_size for i in values):
                raise ValueError(f"{name} {values} is outside the vocabulary of {self.vocab_size}")
        return self

    def _check_layer(self, layer: LayerConfig, *, causal: bool) -> None:
        attention, positions = layer.attention, layer.positions or self.positions
        assert attention is not None, "a resolved layer has an attention"
        if isinstance(positions, RotaryPositions) and rotary_dim(attention, positions) % 2:
            raise ValueError(f"the {rotary_dim(attention, positions)} coordinates to rotate must be even in number")
        if isinstance(positions, RotaryPositions) and isinstance(positions.rope_scaling, LongRopeScaling):
            speeds, scaling = rotary_dim(attention, positions) // 2, positions.rope_scaling
            for name, divisors in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
                if len(divisors) != speeds:
                    raise ValueError(f"{name} has {len(divisors)} divisors for {speeds} angular speeds")
        if isinstance(attention, XLAttentionConfig) != isinstance(positions, RelativeSinusoidalPositions):
            raise ValueError(
                f'"xl" attention and "relative_sinusoidal" positions need each other; here are {attention.kind!r} '
                f"and {positions.kind!r}"
            )
        if isinstance(positions, SinusoidalPositions | RelativeSinusoidalPositions) and self.hidden_size % 2:
            raise ValueError(f"sines and cosines fill an even hidden_size, not {self.hidden_size}")
        if causal and isinstance(attention, LinformerConfig):
            raise ValueError("linformer attention cannot be causal: it mixes keys along the length")

    @property
    def stacks(self) -> tuple[StackConfig, ...]:
        """Encoder, then decoder, where there are."""
        return tuple(s for s in (self.encoder, self.decoder) if s is not None)

    @property
    def output_stack(self) -> StackConfig:
        """The stack whose hidden states the head reads."""
        return self.stacks[-1]


def rotary_dim(attention: Attention, positions: RotaryPositions) -> int:
    """Coordinates of each head that turn."""
    if isinstance(attention, MLAConfig):
        return attention.qk_rope_head_dim
    return int(attention.head_dim * positions.partial_rotary_factor)
