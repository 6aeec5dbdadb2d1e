"""What fills the positions' slot: codes of order, and how rotary ones are stretched. Values only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmworks.core.config import Config
from lmworks.models.slots import Positive, PositiveFloat, Size


class NoPositions(Config):
    """Order is known from the causal mask alone (NoPE, arXiv:2305.19466)."""

    kind: Literal["none"] = "none"


class LearnedPositions(Config):
    """A trained vector per position, added to the embeddings (GPT-2, BERT)."""

    kind: Literal["learned"] = "learned"
    offset: Size = 0
    """Rows of the table before position 0: RoBERTa and BART keep two for padding."""


class SinusoidalPositions(Config):
    """Fixed sines and cosines added to the embeddings (Vaswani et al., 2017, arXiv:1706.03762)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    interleaved: bool = True
    """Sine and cosine alternate, as in the paper; else all sines come first."""
    offset: Size = 0
    """The number of the first position (fairseq's models count from 2)."""
    endpoint: bool = False
    """The last wavelength is 2π·10000 exactly, as in tensor2tensor; in the paper it is one step further."""


class AlibiPositions(Config):
    """Scores fall linearly with distance, at a fixed slope per head (ALiBi, arXiv:2108.12409)."""

    kind: Literal["alibi"] = "alibi"


class RelativeBiasPositions(Config):
    """A trained score per head and bucket of distance, shared by all layers of a stack (T5, arXiv:1910.10683)."""

    kind: Literal["relative_bias"] = "relative_bias"
    relative_attention_num_buckets: Positive = 32
    relative_attention_max_distance: Positive = 128
    per_layer: bool = False
    """Every layer trains its own (UMT5, arXiv:2304.09151)."""


class RelativeSinusoidalPositions(Config):
    """Sines and cosines of distances, which each layer projects for itself (Transformer-XL, arXiv:1901.02860)."""

    kind: Literal["relative_sinusoidal"] = "relative_sinusoidal"


class LinearScaling(Config):
    """Positions divided by a factor (position interpolation, arXiv:2306.15595)."""

    rope_type: Literal["linear"] = "linear"
    factor: PositiveFloat


class DynamicScaling(Config):
    """A base that grows with the document once it exceeds the trained context (dynamic NTK)."""

    rope_type: Literal["dynamic"] = "dynamic"
    factor: PositiveFloat
    original_max_position_embeddings: Positive


class YarnScaling(Config):
    """Fast coordinates kept, slow ones interpolated, scores sharpened (YaRN, arXiv:2309.00071)."""

    rope_type: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original_max_position_embeddings: Positive
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: PositiveFloat | None = None
    """Multiplies cosines and sines; None derives it from `factor`, `mscale` and `mscale_all_dim`."""
    truncate: bool = True
    """Round the first and last interpolated coordinate outwards."""


class Llama3Scaling(Config):
    """Llama 3's frequency-dependent stretching (Llama 3.1 model card)."""

    rope_type: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: Positive = 8192


class LongRopeScaling(Config):
    """A searched divisor per coordinate, one set below and one above the trained context (arXiv:2402.13753)."""

    rope_type: Literal["longrope"] = "longrope"
    short_factor: tuple[PositiveFloat, ...]
    long_factor: tuple[PositiveFloat, ...]
    original_max_position_embeddings: Positive
    attention_factor: PositiveFloat | None = None
    """Multiplies cosines and sines; None derives it from the ratio of the contexts."""


RopeScaling = Annotated[
    LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling, Field(discriminator="rope_type")
]


class RotaryPositions(Config):
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864)."""

    kind: Literal["rope"] = "rope"
    rope_theta: PositiveFloat = 10_000.0
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each head's coordinates that turn, the first ones."""
    interleaved: bool = False
    """Pairs are neighbors (GPT-J, GLM); else coordinate i is paired with i + D/2 (GPT-NeoX, Llama)."""
    rope_scaling: RopeScaling | None = None


Positions = Annotated[
    NoPositions
    | LearnedPositions
    | SinusoidalPositions
    | AlibiPositions
    | RelativeBiasPositions
    | RelativeSinusoidalPositions
    | RotaryPositions,
    Field(discriminator="kind"),
]
