"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, plain GELU MLP, tied head.

On disk its linear maps are `Conv1D`, that is [in, out], and queries, keys and values are one fused matrix.
"""

from __future__ import annotations

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Field,
    Only,
    SpecialTokens,
    Written,
    get,
)
from lmworks.models.families.family import Family
from lmworks.models.hub.rules import Rule, Split, Transpose, rename, with_bias

A, M = "decoder.attention.", "decoder.mlp."


def exact_head_dim(draft: Draft) -> int:
    """`n_embd / n_head`.

    Raises:
        ConfigError: they do not divide.
    """
    hidden_size, heads = draft["hidden_size"], get(draft, f"{A}num_attention_heads")
    if hidden_size % heads:
        raise ConfigError(
            f"config.json: n_embd {hidden_size} is not a multiple of n_head {heads}", "Change one of them"
        )
    return int(hidden_size // heads)


ENTRIES = (
    Field("vocab_size", "vocab_size"),
    Count("n_embd", "hidden_size"),
    Count("n_positions", "max_position_embeddings"),
    Constant("positions", {"kind": "learned"}),
    Count("n_layer", "decoder.num_hidden_layers"),
    Count("n_head", f"{A}num_attention_heads {A}num_key_value_heads"),
    Constant(f"{A}head_dim", exact_head_dim),
    Constant(f"{A}qkv_bias", True),
    Constant(f"{A}o_bias", True),
    Field("n_inner", f"{M}intermediate_size", lambda draft: 4 * draft["hidden_size"]),
    ActivationField("activation_function", f"{M}hidden_act", "gelu_new"),
    Constant(f"{M}gated", False),
    Constant(f"{M}bias", True),
    Constant("decoder.norm.kind", "layer"),
    Field("layer_norm_epsilon", "decoder.norm.eps", 1e-5),
    Field("tie_word_embeddings", "tie_word_embeddings", True),
    Field("initializer_range", "initializer_range", 0.02),
    SpecialTokens(),
    Only("scale_attn_weights", (True,), "scores are always divided by the square root of the head size"),
    Only("scale_attn_by_inverse_layer_idx", (False,), "scores do not depend on the layer"),
    Only("add_cross_attention", (False,), "there is no encoder"),
    Written({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
)
_QKV = tuple(f"decoder.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")
RULES = (
    rename("embed_tokens.weight", "transformer.wte.weight"),
    rename("decoder.embed_positions.weight", "transformer.wpe.weight"),
    Rule(tuple(f"{n}.weight" for n in _QKV), ("transformer.h.{i}.attn.c_attn.weight",), (Transpose(), Split())),
    Rule(tuple(f"{n}.bias" for n in _QKV), ("transformer.h.{i}.attn.c_attn.bias",), (Split(),)),
    *with_bias("decoder.layers.{i}.self_attn.o_proj", "transformer.h.{i}.attn.c_proj", Transpose()),
    *with_bias("decoder.layers.{i}.mlp.up_proj", "transformer.h.{i}.mlp.c_fc", Transpose()),
    *with_bias("decoder.layers.{i}.mlp.down_proj", "transformer.h.{i}.mlp.c_proj", Transpose()),
    *with_bias("decoder.layers.{i}.input_layernorm", "transformer.h.{i}.ln_1"),
    *with_bias("decoder.layers.{i}.post_attention_layernorm", "transformer.h.{i}.ln_2"),
    *with_bias("decoder.norm", "transformer.ln_f"),
    rename("lm_head.weight", "lm_head.weight"),
)


def weight_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """All tensors; the matrix of labels has one name for documents and another for tokens."""
    return (*RULES, *with_bias("head.score", "classifier" if config.head.kind == "token_classification" else "score"))


GPT2 = Family(
    name="gpt2",
    architectures=decoder_heads("GPT2", "LMHeadModel"),
    entries=ENTRIES,
    weight_rules=weight_rules,
    prefix="transformer.",
    ignored_tensors=(r"h\.\d+\.attn\.(masked_)?bias",),
)
