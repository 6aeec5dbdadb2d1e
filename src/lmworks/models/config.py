"""What a model is, as values: a few slots filled by unions. Leaf names are Hugging Face's.

The configuration knows no module; `models/build.py` maps slots to modules. Special-token ids are plain
integers here, and loading checks that they agree with the tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.models.head_slots import CausalLMHead, Head, MaskedLMHead
from lmworks.models.position_slots import (
    LearnedPositions,
    LongRopeScaling,
    Positions,
    RelativeSinusoidalPositions,
    RotaryPositions,
    SinusoidalPositions,
)
from lmworks.models.slots import (
    Attention,
    AttentionConfig,
    Count,
    EmbedConfig,
    FeedForward,
    LinformerConfig,
    MLAConfig,
    NormConfig,
    Positive,
    ResidualConfig,
    Size,
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

    num_hidden_layers: Count
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


class VisionConfig(Config):
    """Images as documents: square patches, each a token, read by a stack of their own (ViT, arXiv:2010.11929)."""

    hidden_size: Positive
    image_size: Positive
    """Height and width in pixels that the positions are trained for; for others they are interpolated."""
    patch_size: Positive
    num_channels: Positive = 3
    class_token: bool = True
    """A trained vector comes before the patches, with a position of its own."""
    patch_bias: bool = True
    norm: NormConfig | None = None
    """Over patches with their positions, before the first layer (CLIP, arXiv:2103.00020)."""
    stack: StackConfig
    vision_feature_layer: Literal[-1, -2] = -1
    """Images become what the last layer gives, or the one before without any norm (LLaVA, arXiv:2304.08485)."""
    vision_feature_select_strategy: Literal["default", "full"] = "full"
    """Patches alone, or with the class token."""

    @model_validator(mode="after")
    def _cuts(self) -> Self:
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} exceeds image_size {self.image_size}")
        if self.stack.causal or self.stack.cross_attention is not None:
            raise ValueError("patches see each other and nothing else: no causal stack, no cross_attention")
        if self.vision_feature_layer == -2 and (self.stack.num_hidden_layers < 2 or self.stack.num_hidden_groups):
            raise ValueError("vision_feature_layer -2 needs two layers that share no weights")
        return self

    @property
    def grid_size(self) -> int:
        """Patches along each side of an image of `image_size`; what is left of it is not seen."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Tokens of such an image."""
        return self.grid_size**2 + self.class_token


class ModelConfig(Config):
    """A Transformer: decoder, encoder, or both; of images alone, or with them."""

    family: str = "llama"
    """Row of `models.families.FAMILIES`: how this model is written as a Hugging Face folder."""
    vocab_size: Size
    """0 where there are images alone."""
    hidden_size: Positive
    max_position_embeddings: Positive
    embed: EmbedConfig = EmbedConfig()
    positions: Positions = RotaryPositions()
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    vision: VisionConfig | None = None
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
            raise ValueError("a model needs an encoder, a decoder or vision")
        reads_text = self.encoder is not None or self.decoder is not None
        if reads_text != (self.vocab_size > 0):
            raise ValueError(f"vocab_size is {self.vocab_size}; it is 0 exactly when a model has vision alone")
        if not reads_text and isinstance(self.head, CausalLMHead | MaskedLMHead):
            raise ValueError(f"a {self.head.kind} head needs a vocabulary, and there are images alone")
        if self.vision and not reads_text:
            sizes = self.vision.hidden_size, self.vision.num_positions
            if (self.hidden_size, self.max_position_embeddings) != sizes:
                raise ValueError(f"hidden_size and max_position_embeddings of a model of images alone must be {sizes}")
        if self.decoder and (self.decoder.cross_attention is None) != (self.encoder is None):
            raise ValueError("a decoder has cross_attention exactly when there is an encoder")
        for owner, stack in self.columns.values():
            for layer, _ in stack.kinds():
                owner._check_layer(layer, causal=stack.causal)
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
        """Vision's, encoder, decoder, where there are."""
        return tuple(stack for _, stack in self.columns.values())

    @property
    def columns(self) -> dict[str, tuple[ModelConfig, StackConfig]]:
        """Every stack by its slot, in order, with the model in whose sizes it is built: vision has its own."""
        columns = {}
        if (vision := self.vision) is not None:
            sizes = {"hidden_size": vision.hidden_size, "max_position_embeddings": vision.num_positions}
            own = {"positions": LearnedPositions(), "embed": EmbedConfig(norm=vision.norm)}
            columns["vision"] = (self.model_copy(update=sizes | own), vision.stack)
        text = {"encoder": self.encoder, "decoder": self.decoder}
        return columns | {name: (self, stack) for name, stack in text.items() if stack is not None}

    @property
    def output_stack(self) -> StackConfig:
        """The stack whose hidden states the head reads."""
        return self.stacks[-1]


def rotary_dim(attention: Attention, positions: RotaryPositions) -> int:
    """Coordinates of each head that turn."""
    if isinstance(attention, MLAConfig):
        return attention.qk_rope_head_dim
    return int(attention.head_dim * positions.partial_rotary_factor)
