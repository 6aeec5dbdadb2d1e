"""BLOOM (arXiv:2211.05100): scores that fall with distance (ALiBi), and a norm over the embeddings."""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import Constant, Implied, Only, Written, get
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, M, fused, heads, megatron_layer, modules, sizes
from lmworks.models.hub.rules import Rule

_BLOCK = "transformer.h.{i}."


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    return (
        *modules(
            "embed_tokens=word_embeddings decoder.embed_norm=word_embeddings_layernorm decoder.norm=ln_f",
            "transformer.", ours="",
        ),
        *modules("lm_head=lm_head head.score=score", ours=""),
        *fused(config, f"{_BLOCK}self_attention.query_key_value"),
        *megatron_layer(_BLOCK, "self_attention"),
    )  # fmt: skip


BLOOM = Family(
    name="bloom",
    architectures=heads("Bloom"),
    entries=(
        *sizes(layers="n_layer", heads="n_head", context="seq_length"),
        Constant(f"{M}hidden_act", "gelu_pytorch_tanh"),
        Constant(f"{A}qkv_bias", True),
        Constant(f"{A}o_bias", True),
        Constant("positions", {"kind": "alibi"}),
        Constant("embed.norm", lambda draft: {"kind": "layer", "eps": get(draft, "decoder.norm.eps")}),
        Only("apply_residual_connection_post_layernorm", (False,), "sums are of what precedes the norms"),
        Written({"hidden_dropout": 0.0, "attention_dropout": 0.0, "slow_but_exact": False}),
        # Switches of its trainer that readers overlook.
        Implied(("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "n_inner",
                 "offset_alibi", "skip_bias_add", "skip_bias_add_qkv")),
    ),
    weight_rules=_rules,
    spellings={"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    prefix="transformer.",
)  # fmt: skip
