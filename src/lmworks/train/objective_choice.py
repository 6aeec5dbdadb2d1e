"""What a model is pretrained to do, as values: one kind of objective each, with what it needs of model and tokenizer.

`objective_wiring.py` makes functions of them. Knows no rows and no trainer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.objectives.ul2 import UL2_DENOISERS, Denoiser

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
Density = Annotated[float, Field(gt=0, lt=1)]
SENTINELS = "<extra_id_{}>"
"""What stands for the first hidden span, the second, ..., numbered from 0 (T5's names)."""


class FillInTheMiddleRates(Config):
    """How often and in which order documents are rearranged (arXiv:2207.14255)."""

    fim_rate: Share = 0.5
    """Share of documents that are rearranged."""
    fim_spm_rate: Share = 0.5
    """Share of these with the suffix before the prefix."""
    prefix_token: str = "<fim_prefix>"
    suffix_token: str = "<fim_suffix>"
    middle_token: str = "<fim_middle>"


class LanguageModeling(Config):
    """What all losses over a vocabulary share."""

    z_loss: Weight = 0.0
    """Weight of log² Z of each token's softmax, which keeps logits from drifting (arXiv:2204.02311)."""
    label_smoothing: Smoothing = 0.0
    """Share of each target spread over the vocabulary (arXiv:1512.00567)."""


class CausalLMObjective(LanguageModeling):
    """The next token from those before it. For decoders."""

    kind: Literal["causal_lm"] = "causal_lm"
    num_nextn_predict_layers: Annotated[int, Field(ge=0)] = 0
    """Tokens after the next one that are predicted too, each by a layer that training alone has (arXiv:2412.19437)."""
    mtp_loss_weight: Weight = 0.3
    """Of their loss."""
    fill_in_the_middle: FillInTheMiddleRates | None = None
    """Also learn to write what stands between two texts."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.num_nextn_predict_layers and self.label_smoothing:
            raise ValueError("label_smoothing is not there with num_nextn_predict_layers; set one of them to 0")
        return self


class MaskedLMObjective(LanguageModeling):
    """Hidden tokens from both sides (BERT, arXiv:1810.04805). For encoders."""

    kind: Literal["masked_lm"] = "masked_lm"
    mlm_probability: Density = 0.15
    """Share of tokens to be predicted."""
    mask_replace_prob: Share = 0.8
    """Of these, the share that becomes the mask token."""
    random_replace_prob: Share = 0.1
    """The share that becomes another token; the rest stays."""
    whole_word: bool = False
    """Hide words whole."""
    mask_token: str = "<mask>"

    @model_validator(mode="after")
    def _one_whole(self) -> Self:
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError(
                f"mask_replace_prob {self.mask_replace_prob} and random_replace_prob {self.random_replace_prob} "
                "are shares of one whole and must not exceed 1 together"
            )
        return self


class ReplacedTokensObjective(Config):
    """Which tokens a small generator has replaced (ELECTRA, arXiv:2003.10555). For encoders; only they are kept."""

    kind: Literal["replaced_tokens"] = "replaced_tokens"
    mlm_probability: Density = 0.15
    discriminator_weight: Weight = 50.0
    generator_size: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Heads and inner size of the generator, as a share of the model's."""
    mask_token: str = "<mask>"


class SpanCorruptionObjective(LanguageModeling):
    """Hidden spans after their text (T5, arXiv:1910.10683). For encoder-decoders; to decoders the text is a prefix."""

    kind: Literal["span_corruption"] = "span_corruption"
    noise_density: Density = 0.15
    mean_noise_span_length: Annotated[float, Field(ge=1)] = 3.0


class UL2Objective(LanguageModeling):
    """A mixture of denoisers (arXiv:2205.05131). For encoder-decoders and decoders."""

    kind: Literal["ul2"] = "ul2"
    denoisers: Annotated[tuple[Denoiser, ...], Field(min_length=1)] = UL2_DENOISERS
    mode_tokens: dict[Literal["R", "S", "X"], str] = {}
    """What a source of each mode begins with, such as `{R: "[NLU]", S: "[S2S]", X: "[NLG]"}`; none: nothing."""


class PrefixLMObjective(LanguageModeling):
    """The second part of a document from all of the first (arXiv:1910.10683). For decoders and encoder-decoders."""

    kind: Literal["prefix_lm"] = "prefix_lm"


class PermutationObjective(Config):
    """Tokens in a random order (XLNet, arXiv:1906.08237). For encoders with two streams."""

    kind: Literal["permutation"] = "permutation"
    predicted: Density = 1 / 6
    """Share of a document that is predicted."""
    z_loss: Weight = 0.0


class Seq2SeqObjective(LanguageModeling):
    """What follows a separator from what stands before it. For encoder-decoders and decoders.

    Rows hold whole documents. Those without the separator teach nothing.
    """

    kind: Literal["seq2seq"] = "seq2seq"
    separator: str = "\n"
    """One token of the text; the source is the document up to and with its first occurrence."""


class ContrastiveObjective(Config):
    """Two crops of one text are nearer than of two (Contriever, arXiv:2112.09118). For models with embedding heads."""

    kind: Literal["contrastive"] = "contrastive"
    loss: Literal["info_nce", "siglip"] = "info_nce"
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of `info_nce`."""
    pairs_per_row: Annotated[int, Field(gt=1)] = 8
    """Pairs that are compared with each other: those of one row, so that no split of a batch changes the loss."""
    shortest_crop: Share = 0.25
    """Crops are at least this share of their text."""


def _kind(value: Any) -> str:
    """The commonest may leave it out."""
    return str(value.get("kind", "causal_lm") if isinstance(value, dict) else getattr(value, "kind", "causal_lm"))


ObjectiveChoice = Annotated[
    Annotated[CausalLMObjective, Tag("causal_lm")]
    | Annotated[MaskedLMObjective, Tag("masked_lm")]
    | Annotated[ReplacedTokensObjective, Tag("replaced_tokens")]
    | Annotated[SpanCorruptionObjective, Tag("span_corruption")]
    | Annotated[UL2Objective, Tag("ul2")]
    | Annotated[PrefixLMObjective, Tag("prefix_lm")]
    | Annotated[PermutationObjective, Tag("permutation")]
    | Annotated[Seq2SeqObjective, Tag("seq2seq")]
    | Annotated[ContrastiveObjective, Tag("contrastive")],
    Discriminator(_kind),
]

HEADS = {"masked_lm": "masked_lm", "replaced_tokens": "token_classification", "contrastive": "embedding"}
"""Heads that objectives train, by kind; the others train a `causal_lm` head."""
SHAPES: dict[str, tuple[str, ...]] = {
    "causal_lm": ("decoder",),
    "masked_lm": ("encoder",),
    "replaced_tokens": ("encoder",),
    "span_corruption": ("encoder-decoder", "decoder"),
    "ul2": ("encoder-decoder", "decoder"),
    "prefix_lm": ("decoder", "encoder-decoder"),
    "permutation": ("two-stream encoder",),
    "seq2seq": ("encoder-decoder", "decoder"),
    "contrastive": ("encoder", "decoder"),
}
"""Models that each kind can train."""
EXAMPLES = {"decoder": "llama", "encoder": "bert", "encoder-decoder": "t5", "two-stream encoder": "xlnet"}


def head_of(objective: ObjectiveChoice) -> str:
    """Kind of the head that the objective trains."""
    return HEADS.get(objective.kind, "causal_lm")


def shape_of(model: ModelConfig) -> str:
    """Which stacks of text a model has, in the words of `SHAPES`."""
    if model.decoder is not None:
        return "decoder" if model.encoder is None else "encoder-decoder"
    if model.encoder is None:
        return "model of images"
    return "two-stream encoder" if model.encoder.attention.kind == "xl" else "encoder"


def check_shape(objective: ObjectiveChoice, shape: str, family: str) -> None:
    """Refuse a kind of model that the objective cannot train.

    Args:
        objective: the choice.
        shape: in the words of `SHAPES`.
        family: named in the error.

    Raises:
        ConfigError: naming the model's kind, those that fit, and a family for each.
    """
    fit = SHAPES[objective.kind]
    if shape not in fit:
        kinds = [kind for kind, shapes in SHAPES.items() if shape in shapes]
        examples = " or ".join(f"{name} ({EXAMPLES[name]})" for name in fit)
        raise ConfigError(
            f"the objective {objective.kind!r} trains a model of the kind {examples}, and {family} is one of the kind "
            f"{shape}",
            f"Choose such a model, or one of the objectives for this one: {', '.join(kinds) or 'none'}",
        )


def check_model(objective: ObjectiveChoice, model: ModelConfig) -> None:
    """Refuse a model that the objective cannot train.

    Raises:
        ConfigError: it is of another kind, or has another head.
    """
    check_shape(objective, shape_of(model), model.family)
    head = head_of(objective)
    labels = getattr(model.head, "num_labels", 1)
    if model.head.kind != head or (objective.kind == "replaced_tokens" and labels != 1):
        raise ConfigError(
            f"the objective {objective.kind!r} trains a {head} head, and the model has a {model.head.kind} head"
            + (f" with {labels} labels" if model.head.kind == head else ""),
            "Start from a model with that head, or from random weights",
        )
