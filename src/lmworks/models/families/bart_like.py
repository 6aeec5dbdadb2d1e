"""What BART's kin share: encoder-decoders with biases everywhere, which differ in norms and positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.encoder_decoder import (
    FAIRSEQ_KEYS,
    GENERATION_KEYS,
    ScaledEmbedding,
    both,
    shared_embedding,
)
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Entry,
    Field,
    Implied,
    Only,
    SpecialTokens,
    Written,
    get,
)
from lmworks.models.families.family import Family
from lmworks.models.hub.rules import Reshape, Rule, Zeros, rename, with_bias

PositionsOf = Mapping[str, Any] | Callable[[Draft], Mapping[str, Any]]
LEARNED = {"kind": "learned", "offset": 2}


def _head_dim(draft: Draft, stack: str) -> int:
    hidden_size, heads = draft["hidden_size"], get(draft, f"{stack}.attention.num_attention_heads")
    if hidden_size % heads:
        raise ConfigError(
            f"config.json: d_model {hidden_size} is not a multiple of {stack}_attention_heads {heads}",
            "Change one of them",
        )
    return int(hidden_size // heads)


def _stack(name: str) -> tuple[Entry, ...]:
    attentions = [f"{name}.attention", *([f"{name}.cross_attention"] if name == "decoder" else [])]
    heads = [f"{a}.{leaf}" for a in attentions for leaf in ("num_attention_heads", "num_key_value_heads")]
    return (
        Count(f"{name}_layers", f"{name}.num_hidden_layers", 12),
        Count(f"{name}_attention_heads", " ".join(heads), 16),
        *(Constant(f"{a}.head_dim", partial(_head_dim, stack=name)) for a in attentions),
        *(Constant(f"{a}.{leaf}", value=True) for a in attentions for leaf in ("qkv_bias", "o_bias")),
        Count(f"{name}_ffn_dim", f"{name}.mlp.intermediate_size", 4096),
        Constant(f"{name}.mlp.gated", value=False),
        Constant(f"{name}.mlp.bias", value=True),
        Constant(f"{name}.norm.kind", "layer"),
        Field(f"{name}_layerdrop", f"{name}.residual.layerdrop", 0.0),
    )


def _entries(
    positions: PositionsOf, *, pre_norm: bool, embed_norm: bool, activation: str, scaled: bool,
    start: int | None, pad: int,
) -> tuple[Entry, ...]:  # fmt: skip
    return (
        Field("vocab_size", "vocab_size"),
        Count("d_model", "hidden_size", 1024),
        Count("max_position_embeddings", "max_position_embeddings", 1024),
        Field("pad_token_id", "pad_token_id", pad),
        Constant("positions", positions),
        *_stack("encoder"),
        *_stack("decoder"),
        Constant("encoder.causal", value=False),
        *(Constant(path, "pre" if pre_norm else "post") for path in both("placement").split()),
        *(Constant(path, pre_norm) for path in both("final_norm").split()),
        Constant("embed.norm", {"kind": "layer", "eps": 1e-5} if embed_norm else None),
        *(ActivationField("activation_function", path, activation) for path in both("mlp.hidden_act").split()),
        Field("dropout", f"embed.dropout {both('residual.dropout')}", 0.1),
        ScaledEmbedding(scaled),
        Field("init_std", "initializer_range", 0.02),
        SpecialTokens(),
        Field("decoder_start_token_id", "decoder_start_token_id", start),
        Field("forced_bos_token_id", "forced_bos_token_id", None),
        Constant("tie_word_embeddings", value=True),
        Only("tie_word_embeddings", (True,), "both stacks and the head share one matrix", written=True),
        Only("share_encoder_decoder_embeddings", (True,), "both stacks and the head share one matrix"),
        Written({"is_encoder_decoder": True, "activation_dropout": 0.0, "attention_dropout": 0.0}),
        Implied((*GENERATION_KEYS, *FAIRSEQ_KEYS)),
    )


def _modules(stack: str) -> dict[str, str]:
    """Modules of ours to theirs, below the stack's name."""
    sublayers = {"self_attn": "self_attn", "cross_attn": "encoder_attn"}
    projections = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}
    layer = {f"{a}.{p}": f"{b}.{q}" for a, b in sublayers.items() for p, q in projections.items()} | {
        "input_layernorm": "self_attn_layer_norm", "cross_attention_layernorm": "encoder_attn_layer_norm",
        "post_attention_layernorm": "final_layer_norm", "mlp.up_proj": "fc1", "mlp.down_proj": "fc2",
    }  # fmt: skip
    beside = {"embed_positions": "embed_positions", "embed_norm": "layernorm_embedding", "norm": "layer_norm"}
    names = {f"layers.{{i}}.{ours}": f"layers.{{i}}.{theirs}" for ours, theirs in layer.items()} | beside
    return {f"{stack}.{ours}": f"model.{stack}.{theirs}" for ours, theirs in names.items()}


_MODULES = {
    "embed_tokens": "model.shared",
    **_modules("encoder"),
    **_modules("decoder"),
    "head.dense": "classification_head.dense",
    "head.score": "classification_head.out_proj",
}
SINUSOIDS = r"(encoder|decoder)\.embed_positions\.weights?"
"""Which old files hold."""
_BIAS = ("lm_head.bias",)
_RULES: tuple[Rule, ...] = (
    *(rule for ours, theirs in _MODULES.items() for rule in with_bias(ours, theirs)),
    rename("lm_head.weight", "lm_head.weight"),
    Rule(_BIAS, ("final_logits_bias",), (Reshape((1, -1), (-1,)),), also=(Rule(_BIAS, (), (Zeros(),)),)),
)


def bart_like(
    name: str, stem: str, *, positions: PositionsOf, pre_norm: bool = True,
    embed_norm: bool = False, activation: str = "gelu", scaled: bool = False, start: int | None = None, pad: int = 1,
    bias: bool = True, classifier: bool = False,
) -> Family:  # fmt: skip
    """The row of `model_type` `name`, whose classes begin with `stem`.

    `pre_norm` places norms before each branch and after the last layer, else after each sum; `embed_norm` is over the
    embeddings. `activation`, `scaled` (embeddings times √E), `start` (the decoder's first token) and `pad` hold where
    a file does not say. `bias`: files hold one of the logits. `classifier`: a class judges documents by their end.
    """
    language_model = {"kind": "causal_lm", **({"bias": "fixed"} if bias else {})}
    judge = {"kind": "sequence_classification", "pooling": "last", "dense_act": "tanh", "bias": True}
    return Family(
        name=name,
        architectures={
            **dict.fromkeys((f"{stem}ForConditionalGeneration", f"{stem}MTModel", f"{stem}Model"), language_model),
            **({f"{stem}ForSequenceClassification": judge} if classifier else {}),
        },
        entries=_entries(positions, pre_norm=pre_norm, embed_norm=embed_norm, activation=activation, scaled=scaled,
                         start=start, pad=pad),
        weight_rules=_RULES,
        prefix="model.",
        aliases=shared_embedding("model."),
        ignored_tensors=(r"(encoder|decoder)\.version", *([] if positions == LEARNED else [SINUSOIDS])),
    )  # fmt: skip
