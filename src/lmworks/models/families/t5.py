"""T5 (arXiv:1910.10683) and its kin: relative biases from the first layer, RMSNorm, unscaled scores, no linear biases.

T5 1.1, flan-T5 and mT5 have gated nets and a head of its own; UMT5 a bias per layer; Switch Transformers
(arXiv:2101.03961) a mixture of experts in every n-th layer. Relative positions know no end: `n_positions`, 512 where
a file does not say, is the length trained on and may be raised.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.encoder_decoder import (
    GENERATION_KEYS,
    FeedForwardProj,
    TiedHead,
    attentions,
    both,
    shared_embedding,
)
from lmworks.models.families.entries import Constant, Count, Entry, Field, Implied, SpecialTokens, Written, get
from lmworks.models.families.family import Family
from lmworks.models.hub.rules import Rule, rename

SIZES: tuple[Entry, ...] = (
    Field("vocab_size", "vocab_size"),
    Count("d_model", "hidden_size"),
    Count("n_positions", "max_position_embeddings", 512),
    Constant("positions.kind", "relative_bias"),
    Field("relative_attention_num_buckets", "positions.relative_attention_num_buckets", 32),
    Field("relative_attention_max_distance", "positions.relative_attention_max_distance", 128),
    Constant("encoder.causal", value=False),
    Count("num_layers", "encoder.num_hidden_layers"),
    Count("num_decoder_layers", "decoder.num_hidden_layers", lambda draft: get(draft, "encoder.num_hidden_layers")),
    Count("num_heads", f"{attentions('num_attention_heads')} {attentions('num_key_value_heads')}"),
    Count("d_kv", attentions("head_dim"), 64),
    *(Constant(path, 1.0) for path in attentions("scale").split()),
    Count("d_ff", both("mlp.intermediate_size")),
    Field("layer_norm_epsilon", both("norm.eps"), 1e-6),
    Field("dropout_rate", f"embed.dropout {both('residual.dropout')}", 0.1),
    Field("initializer_range", "initializer_range", 0.02),
    SpecialTokens(),
    Field("pad_token_id", "pad_token_id", 0),
    Field("decoder_start_token_id", "decoder_start_token_id", 0),
    Written({"is_encoder_decoder": True, "initializer_factor": 1.0}),
    Implied((*GENERATION_KEYS, "dense_act_fn", "is_gated_act", "classifier_dropout", "scalable_attention")),
)


def t5_rules(config: ModelConfig, net: str = "DenseReluDense") -> tuple[Rule, ...]:
    """Of all tensors but the experts; `net` is the name of the feed-forward net."""
    rules = [rename("embed_tokens.weight", "shared.weight"), rename("lm_head.weight", "lm_head.weight")]
    for stack, last in (("encoder", 1), ("decoder", 2)):
        ours, layer = f"{stack}.layers.{{i}}", f"{stack}.block.{{i}}.layer"
        code = "{i}" if getattr(config.positions, "per_layer", False) else "0"
        bias = f"{stack}.block.{code}.layer.0.SelfAttention.relative_attention_bias.weight"
        gated = config.output_stack.mlp.gated
        nets = {"gate_proj": "wi_0", "up_proj": "wi_1" if gated else "wi", "down_proj": "wo"}
        names = {
            **{f"self_attn.{p}_proj": f"0.SelfAttention.{p}" for p in "qkvo"},
            **{f"cross_attn.{p}_proj": f"1.EncDecAttention.{p}" for p in "qkvo"},
            **{f"mlp.{name}": f"{last}.{net}.{other}" for name, other in nets.items()},
            "input_layernorm": "0.layer_norm",
            "cross_attention_layernorm": "1.layer_norm",
            "post_attention_layernorm": f"{last}.layer_norm",
        }
        rules += [
            rename(f"{stack}.position_codes.{code}.weight", bias),
            rename(f"{stack}.norm.weight", f"{stack}.final_layer_norm.weight"),
            *(rename(f"{ours}.{name}.weight", f"{layer}.{other}.weight") for name, other in names.items()),
        ]
    return tuple(rules)


REPEATED_BIAS = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
"""Old files hold a bias of cross-attention, which nothing reads."""


def _row(name: str, stem: str, *, gated: bool = True, scales: bool = True, per_layer: bool = False) -> Family:
    return Family(
        name=name,
        architectures={
            f"{stem}{end}": {"kind": "causal_lm"} for end in ("ForConditionalGeneration", "WithLMHeadModel", "Model")
        },
        entries=(
            *SIZES,
            Constant("positions.per_layer", per_layer),
            FeedForwardProj("gated-gelu" if gated else "relu"),
            TiedHead(scales),
        ),
        weight_rules=t5_rules,
        aliases=shared_embedding(),
        ignored_tensors=(REPEATED_BIAS,),
        tied_unless_stored=True,
    )


T5 = _row("t5", "T5", gated=False)
MT5 = _row("mt5", "MT5", scales=False)
UMT5 = _row("umt5", "UMT5", per_layer=True)
