"""Falcon (arXiv:2311.16867): parallel blocks with shared keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import Draft, Field, Implied, Only, Rotary, Written, get, put
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, M, fused, heads, megatron_layer, modules, sizes
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule

_BLOCK = "transformer.h.{i}."


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    assert config.decoder is not None, "Falcon is a decoder"
    norms = ("ln_attn", "ln_mlp") if config.decoder.placement == "parallel" else (
        "input_layernorm", "post_attention_layernorm"
    )  # fmt: skip
    return (
        *modules("embed_tokens=word_embeddings decoder.norm=ln_f", "transformer.", ours=""),
        *modules("lm_head=lm_head head.score=score", ours=""),
        *fused(config, f"{_BLOCK}self_attention.query_key_value"),
        *megatron_layer(_BLOCK, "self_attention", norms),
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Who shares keys and values, and where the norms are: the first models say it otherwise than the later ones."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        newer, parallel = fields.take("new_decoder_architecture", False), fields.take("parallel_attn", True)
        every = get(draft, f"{A}num_attention_heads")
        groups, single = fields.count("num_kv_heads", every), fields.take("multi_query", True)
        norms = fields.take("num_ln_in_parallel_attn", 2 if newer else 1)
        put(draft, f"{A}num_key_value_heads", groups if newer else 1 if single else every)
        side_by_side = "parallel" if norms == 2 else "parallel_shared"
        put(draft, "decoder.placement", side_by_side if newer or parallel else "pre")

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        groups, every = get(draft, f"{A}num_key_value_heads"), get(draft, f"{A}num_attention_heads")
        placement = get(draft, "decoder.placement")
        newer = placement != "pre" and (placement == "parallel" or groups not in (1, every))
        hf |= {
            "new_decoder_architecture": newer, "num_kv_heads": groups, "multi_query": groups == 1,
            "parallel_attn": placement != "pre", "num_ln_in_parallel_attn": 2 if placement == "parallel" else 1,
        }  # fmt: skip


FALCON = Family(
    name="falcon",
    architectures=heads("Falcon"),
    entries=(
        *sizes(inner="ffn_hidden_size", act=("activation", "gelu")),
        Field("bias", f"{A}qkv_bias {A}o_bias {M}bias", False),
        Layout(),
        Rotary(),
        Only("alibi", (False,), "the ALiBi of the RW models counts in bfloat16, which no other does", written=False),
        Only("apply_residual_connection_post_layernorm", (False,), "sums are of what precedes the norms"),
        Written({"hidden_dropout": 0.0, "attention_dropout": 0.0}),
        Implied(("ff_factor",)),
    ),
    weight_rules=_rules,
    spellings={"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
               "n_head_kv": "num_kv_heads"},
    prefix="transformer.",
)  # fmt: skip
