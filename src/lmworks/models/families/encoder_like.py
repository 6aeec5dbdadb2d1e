"""Entries and weight rules that encoders share: BERT's names, with what relatives change left to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Entry,
    Field,
    SpecialTokens,
    exact_head_dim,
    get,
    put,
)
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule, rename, with_bias

A, M = "encoder.attention.", "encoder.mlp."


@dataclass(frozen=True)
class Inert:
    """Keys that change nothing here and that readers have defaults for: dropout, leftovers of conversions."""

    keys: str
    """Separated by spaces."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        for key in self.keys.split():
            fields.take(key, None)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class OffsetPositions:
    """A table of learned positions that begins after the padding's id, rows that its size counts (RoBERTa)."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        rows, offset = fields.count("max_position_embeddings", 512), draft["pad_token_id"] + 1
        if rows <= offset:
            raise ConfigError(
                f"config.json: max_position_embeddings {rows} leaves no position after the padding's {offset}",
                "Correct it or pad_token_id",
            )
        draft["max_position_embeddings"] = rows - offset
        draft["positions"] = {"kind": "learned", "offset": offset}

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["max_position_embeddings"] = draft["max_position_embeddings"] + draft["positions"]["offset"]


@dataclass(frozen=True)
class EmbeddingSize:
    """Of the vectors before the first layer, projected where it is not the hidden size, or always."""

    default: int
    always: bool = False

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        size = fields.count("embedding_size", self.default)
        put(draft, "embed.embedding_size", size if self.always or size != draft["hidden_size"] else None)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["embedding_size"] = get(draft, "embed.embedding_size") or draft["hidden_size"]


def encoder_act(draft: Draft) -> str:
    """The feed-forward nets' activation, for heads that take it over."""
    return str(get(draft, f"{M}hidden_act"))


LEARNED = (Count("max_position_embeddings", "max_position_embeddings", 512), Constant("positions", {"kind": "learned"}))
TOKEN_TYPES = Field("type_vocab_size", "embed.type_vocab_size", 2)
ALWAYS = (
    Constant("encoder.causal", False),
    Constant("initialization", "normal"),
    Constant("encoder.norm.kind", "layer"),
    Constant("embed.norm.kind", "layer"),
)
POST_NORM = (Constant("encoder.placement", "post"), Constant("encoder.final_norm", False))
PLAIN_MLP = (Constant(f"{M}gated", False), Constant(f"{M}bias", True))
BIASED = Constant(f"{A}qkv_bias", True), Constant(f"{A}o_bias", True)


def common(
    *, pad: int | None = 0, hidden_act: str = "gelu", eps: str | None = "layer_norm_eps", eps_default: float = 1e-12,
    act_key: str = "hidden_act", names: Mapping[str, str] | None = None,
) -> tuple[Entry, ...]:  # fmt: skip
    """Sizes, activation and norms of an encoder.

    Args:
        pad: the padding's id where the file does not say.
        hidden_act: the activation where the file does not say.
        eps: key of the norms' epsilon; None: there is none.
        eps_default: where the file does not say.
        act_key: key of the activation.
        names: keys that are called otherwise than BERT's: BERT's to the family's.
    """
    keys = {n: n for n in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    keys |= names or {}
    return (
        Field("vocab_size", "vocab_size"),
        Field("pad_token_id", "pad_token_id", pad),
        Count(keys["hidden_size"], "hidden_size"),
        Count(keys["num_hidden_layers"], "encoder.num_hidden_layers"),
        Count(keys["num_attention_heads"], f"{A}num_attention_heads {A}num_key_value_heads"),
        Constant(f"{A}head_dim", partial(exact_head_dim, attention=A)),
        Count(keys["intermediate_size"], f"{M}intermediate_size"),
        ActivationField(act_key, f"{M}hidden_act", hidden_act),
        *ALWAYS,
        *(Constant(f"{n}.norm.eps", eps_default) for n in ("encoder", "embed") if eps is None),
        *(Field(key, "encoder.norm.eps embed.norm.eps", eps_default) for key in (eps,) if key is not None),
        Field("tie_word_embeddings", "tie_word_embeddings", True),
        Field("initializer_range", "initializer_range", 0.02),
        SpecialTokens(),
    )


def modules(ours: str, theirs: str, table: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for modules, below a prefix of ours and one of theirs."""
    return tuple(r for mine, other in table.items() for r in with_bias(f"{ours}{mine}", f"{theirs}{other}"))


def encoder_rules(
    embeddings: tuple[Rule, ...], layers: tuple[str, Mapping[str, str]], heads: Mapping[str, Mapping[str, str]],
    decoder: str, bias: str, others: tuple[Rule, ...] = (),
) -> Callable[[ModelConfig], tuple[Rule, ...]]:  # fmt: skip
    """The rules of a family, which differ by head.

    Args:
        embeddings: before the first layer.
        layers: prefix of a layer's names, and its modules.
        heads: modules by kind of head; "KIND+dense" where those of a head with a dense layer are called otherwise.
        decoder: module of the vocabulary's matrix.
        bias: name of its bias.
        others: of the stack.
    """
    body = (*embeddings, *modules("encoder.layers.{i}.", *layers), *others)
    vocabulary = rename("lm_head.weight", f"{decoder}.weight"), rename("lm_head.bias", bias)

    def rules(config: ModelConfig) -> tuple[Rule, ...]:
        kind = config.head.kind
        dense = f"{kind}+dense" if getattr(config.head, "dense_act", "none") != "none" else kind
        return (*body, *modules("head.", "", heads.get(dense, heads.get(kind, {}))), *vocabulary)

    return rules


def bert_embeddings(prefix: str) -> tuple[Rule, ...]:
    """Rules of what stands before the first layer, below `prefix`."""
    words = {"encoder.embed_positions": "position_embeddings", "encoder.embed_types": "token_type_embeddings",
             "encoder.embed_norm": "LayerNorm"}  # fmt: skip
    return (rename("embed_tokens.weight", f"{prefix}word_embeddings.weight"), *modules("", prefix, words))


BERT_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.o_proj": "attention.output.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "post_attention_layernorm": "output.LayerNorm",
}
UNUSED = (r"embeddings\.(position_ids|token_type_ids)", r"pooler\..*", r"cls\.seq_relationship\..*")
"""Buffers, and heads of the training that files keep beside the one their `config.json` names."""
GAMMA_BETA = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
"""TensorFlow's names of a norm's weights, as in bert-base-uncased."""
