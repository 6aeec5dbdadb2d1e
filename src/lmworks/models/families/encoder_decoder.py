"""What files of encoder-decoder models share: keys that come twice, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.entries import Draft, get, put
from lmworks.models.families.hf_config import ACTIVATIONS, Fields

GENERATION_KEYS = (
    "output_past", "num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size", "min_length", "prefix",
    "forced_eos_token_id", "bad_words_ids", "num_return_sequences", "repetition_penalty",
    "force_bos_token_to_be_generated", "encoder_no_repeat_ngram_size",
)  # fmt: skip
"""How transformers generates by default, which old files keep in `config.json`."""
FAIRSEQ_KEYS = (
    "classifier_dropout", "classif_dropout", "num_hidden_layers", "gradient_checkpointing",
    "add_bias_logits", "add_final_layer_norm", "normalize_before", "normalize_embedding", "static_position_embeddings",
    "extra_pos_embeddings", "decoder_vocab_size", "_num_labels", "max_source_positions",
)  # fmt: skip
"""What files converted from fairseq also say; the family's name decides about it."""


def both(*leaves: str) -> str:
    """The dotted paths of fields that encoder and decoder have alike."""
    return " ".join(f"{stack}.{leaf}" for stack in ("encoder", "decoder") for leaf in leaves)


def attentions(leaf: str) -> str:
    """The dotted paths of a field of all three attentions."""
    return f"{both(f'attention.{leaf}')} decoder.cross_attention.{leaf}"


def shared_embedding(prefix: str = "") -> dict[str, str]:
    """The stacks' names of the one embedding: alias to owner."""
    return {f"{prefix}{stack}.embed_tokens.weight": f"{prefix}shared.weight" for stack in ("encoder", "decoder")}


@dataclass(frozen=True)
class ScaledEmbedding:
    """`scale_embedding`: whether embeddings are multiplied by √d_model."""

    default: bool

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        scaled = fields.take("scale_embedding", self.default)
        put(draft, "embed.multiplier", draft["hidden_size"] ** 0.5 if scaled else 1.0)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["scale_embedding"] = get(draft, "embed.multiplier") != 1.0


@dataclass(frozen=True)
class FeedForwardProj:
    """`feed_forward_proj`: an activation, "gated-" before it where the net is gated; "gated-gelu" is the tanh form."""

    default: str

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        name = str(fields.take("feed_forward_proj", self.default))
        activation = "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"config.json: feed_forward_proj = {name!r} is unknown",
                f"Known, also with 'gated-' before it: {', '.join(ACTIVATIONS)}",
            )
        for stack in ("encoder", "decoder"):
            put(draft, f"{stack}.mlp.hidden_act", ACTIVATIONS[activation])
            put(draft, f"{stack}.mlp.gated", name.startswith("gated-"))

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        name, gated = get(draft, "encoder.mlp.hidden_act"), get(draft, "encoder.mlp.gated")
        if gated and name == "gelu":
            raise ConfigError("the exact GELU has no gated form in this family", 'Choose "gelu_pytorch_tanh"')
        hf["feed_forward_proj"] = "gated-" * gated + ("gelu" if gated and name == "gelu_pytorch_tanh" else name)


@dataclass(frozen=True)
class TiedHead:
    """`tie_word_embeddings`, which also says whether logits are scaled by √d_model, unless the file says it apart."""

    scales: bool = True
    """Whether a tied head ever scales; mT5's does not."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        draft["tie_word_embeddings"] = fields.take("tie_word_embeddings", True)
        scaled = fields.take("scale_decoder_outputs", self.scales and draft["tie_word_embeddings"])
        draft["head"] = {"kind": "causal_lm", "logit_multiplier": draft["hidden_size"] ** -0.5 if scaled else 1.0}

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["tie_word_embeddings"] = draft["tie_word_embeddings"]
        hf["scale_decoder_outputs"] = get(draft, "head.logit_multiplier") != 1.0
