"""Entries and weight rules of the decoders that followed GPT-2: LayerNorm, plain MLP with biases, fused projections.

Knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Entry,
    Field,
    SpecialTokens,
    exact_head_dim,
)
from lmworks.models.hub.rules import Rule, Split, with_bias
from lmworks.models.slots import AttentionConfig

A, M = "decoder.attention.", "decoder.mlp."
OURS = "decoder.layers.{i}."


def four_times(draft: Draft) -> int:
    """The usual inner size."""
    return int(4 * draft["hidden_size"])


def sizes(
    *, hidden: str = "hidden_size", layers: str = "num_hidden_layers", heads: str = "num_attention_heads",
    context: str = "max_position_embeddings", inner: str | None = None, eps: str | None = "layer_norm_epsilon",
    act: tuple[str, str] | None = None, tied: bool = True, initializer: str = "initializer_range", longest: int = 2048,
) -> tuple[Entry, ...]:  # fmt: skip
    """Sizes, LayerNorm and MLP.

    Args:
        hidden: their key of the hidden size.
        layers: of the number of layers.
        heads: of the number of heads.
        context: of the longest document.
        inner: of the MLP's inner size, four times the hidden size where absent; None: it always is.
        eps: of the norms' epsilon; None: it is 1e-5.
        act: of the activation, and what it is where absent; None: it is GELU.
        tied: whether the head repeats the embedding where the file does not say.
        initializer: of the deviation of new weights.
        longest: the longest document where the file does not say.
    """
    return (
        Field("vocab_size", "vocab_size"),
        Count(hidden, "hidden_size"),
        Count(context, "max_position_embeddings", longest),
        Count(layers, "decoder.num_hidden_layers"),
        Count(heads, f"{A}num_attention_heads {A}num_key_value_heads"),
        Constant(f"{A}head_dim", exact_head_dim),
        Constant(f"{M}intermediate_size", four_times) if inner is None else Count(
            inner, f"{M}intermediate_size", four_times
        ),
        Constant(f"{M}hidden_act", "gelu") if act is None else ActivationField(act[0], f"{M}hidden_act", act[1]),
        Constant(f"{M}gated", False),
        Constant(f"{M}bias", True),
        Constant("decoder.norm.kind", "layer"),
        Constant("decoder.norm.eps", 1e-5) if eps is None else Field(eps, "decoder.norm.eps", 1e-5),
        Field("tie_word_embeddings", "tie_word_embeddings", tied),
        Field(initializer, "initializer_range", 0.02),
        SpecialTokens(),
    )  # fmt: skip


def heads(stem: str, language_model: str = "ForCausalLM", **of_language_model: Any) -> Mapping[str, Mapping[str, Any]]:
    """The classes whose head is called as in Llama; the language model's head may have further fields."""
    named = decoder_heads(stem, language_model)
    del named[f"{stem}ForTokenClassification"]
    named[f"{stem}{language_model}"] = {"kind": "causal_lm", **of_language_model}
    return named


def modules(pairs: str, theirs: str = "", ours: str = OURS) -> tuple[Rule, ...]:
    """Rules for weights and biases of modules, given as `ours=theirs` separated by spaces, below two prefixes."""
    named = (pair.split("=") for pair in pairs.split())
    return tuple(rule for left, right in named for rule in with_bias(ours + left, theirs + right))


def megatron_layer(
    theirs: str, attention: str, norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
) -> tuple[Rule, ...]:
    """A layer as Megatron's descendants call its parts, but for what is fused; `norms` are theirs of both branches."""
    return modules(
        f"self_attn.o_proj={attention}.dense mlp.up_proj=mlp.dense_h_to_4h mlp.down_proj=mlp.dense_4h_to_h "
        f"input_layernorm={norms[0]} post_attention_layernorm={norms[1]}", theirs,
    )  # fmt: skip


def fused(config: ModelConfig, theirs: str) -> tuple[Rule, ...]:
    """Queries, keys and values in one module of theirs: per kv head the queries that share it, its key, its value."""
    assert config.decoder is not None, "these families are decoders"
    assert isinstance(config.decoder.attention, AttentionConfig), "these families have softmax attention"
    operation = Split(groups=config.decoder.attention.num_key_value_heads)
    return tuple(
        Rule(tuple(f"{OURS}self_attn.{p}_proj.{kind}" for p in "qkv"), (f"{theirs}.{kind}",), (operation,))
        for kind in ("weight", "bias")
    )
