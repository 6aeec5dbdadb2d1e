"""T5 (arXiv:1910.10683) and its kin: relative biases from the first layer, RMSNorm, unscaled scores, no linear biases.

T5 1.1, flan-T5 and mT5 have gated nets and a head of its own; UMT5 a bias per layer; Switch Transformers
(arXiv:2101.03961) a mixture of experts in every n-th layer. Relative positions know no end: `n_positions`, 512 where
a file does not say, is the length trained on and may be raised.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.encoder_decoder import (
    GENERATION_KEYS,
    FeedForwardProj,
    Ignored,
    TiedHead,
    attentions,
    both,
    shared_embedding,
)
from lmworks.models.families.entries import Constant, Count, Entry, Field, SpecialTokens, Written, get
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import HFConfig
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
    Ignored(f"{GENERATION_KEYS} dense_act_fn is_gated_act classifier_dropout"),
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


def _preset(d_model: int, d_ff: int, layers: int, heads: int, d_kv: int = 64, **more: Any) -> HFConfig:
    return {
        "vocab_size": 32128, "d_model": d_model, "d_ff": d_ff, "num_layers": layers, "num_heads": heads, "d_kv": d_kv,
        "eos_token_id": 1, "n_positions": 512, **more,
    }  # fmt: skip


def _gated(d_model: int, d_ff: int, layers: int, heads: int, **more: Any) -> HFConfig:
    more = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **more}
    return _preset(d_model, d_ff, layers, heads, **more)


_SIZES = {
    "small": (512, 1024, 8, 6), "base": (768, 2048, 12, 12), "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32), "xxl": (4096, 10240, 24, 64),
}  # fmt: skip
"""Of T5 1.1 and what is made from it: d_model, d_ff, layers, heads."""


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


T5 = replace(
    _row("t5", "T5", gated=False),
    hf_presets={
        "t5-small": _preset(512, 2048, 6, 8),
        "t5-base": _preset(768, 3072, 12, 12),
        "t5-large": _preset(1024, 4096, 24, 16),
        "t5-3b": _preset(1024, 16384, 24, 32, 128),
        "t5-11b": _preset(1024, 65536, 24, 128, 128),
        **{f"t5-v1_1-{size}": _gated(*numbers) for size, numbers in _SIZES.items()},
        **{f"flan-t5-{size}": _gated(*numbers) for size, numbers in _SIZES.items()},
    },
)
MT5 = replace(
    _row("mt5", "MT5", scales=False),
    hf_presets={
        f"mt5-{size}": _gated(*numbers, vocab_size=250112, n_positions=1024) for size, numbers in _SIZES.items()
    },
)
UMT5 = replace(
    _row("umt5", "UMT5", per_layer=True),
    hf_presets={
        f"umt5-{size}": _gated(*_SIZES[size], vocab_size=256384, n_positions=1024)
        for size in ("small", "base", "xl", "xxl")
    },
)
