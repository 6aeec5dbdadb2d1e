"""MPT (MosaicML, 2023): scores that fall with distance (ALiBi), no biases anywhere, projections fused end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.entries import Constant, Draft, Implied, Only, Written
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import OURS, M, heads, modules, sizes
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule, Split

_BLOCK = "transformer.blocks.{i}."
_RULES = (
    *modules("embed_tokens=wte decoder.norm=norm_f", "transformer.", ours=""),
    *modules("lm_head=lm_head head.score=score", ours=""),
    Rule(tuple(f"{OURS}self_attn.{p}_proj.weight" for p in "qkv"), (f"{_BLOCK}attn.Wqkv.weight",), (Split(),)),
    *modules(
        "self_attn.o_proj=attn.out_proj mlp.up_proj=ffn.up_proj mlp.down_proj=ffn.down_proj input_layernorm=norm_1 "
        "post_attention_layernorm=norm_2", _BLOCK,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class MptAttention:
    """`attn_config`, of which everything is fixed but the scale of the scores."""

    only: tuple[tuple[str, Any], ...] = (
        ("attn_type", "multihead_attention"), ("clip_qkv", None), ("softmax_scale", None), ("prefix_lm", False),
        ("qk_ln", False), ("attn_uses_sequence_id", False), ("alibi", True), ("alibi_bias_max", 8),
    )  # fmt: skip

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        given = fields.take("attn_config", {})
        for key, value in self.only:
            if given.get(key, value) != value:
                raise ConfigError(
                    f"config.json: attn_config.{key} = {given[key]!r} is not supported, only {value!r}",
                    "Use another model",
                )

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["attn_config"] = dict(self.only)


MPT = Family(
    name="mpt",
    architectures={**heads("Mpt"), "MPTForCausalLM": {"kind": "causal_lm"}},
    entries=(
        *sizes(hidden="d_model", layers="n_layers", heads="n_heads", context="max_seq_len"),
        Constant(f"{M}bias", False),
        Constant("decoder.norm.bias", False),
        Constant("positions", {"kind": "alibi"}),
        MptAttention(),
        Only("expansion_ratio", (4,), "the inner size is four times the outer", written=4),
        Only("no_bias", (True,), "there are no biases", written=True),
        Only("logit_scale", (), "logits are not scaled"),
        Written({"resid_pdrop": 0.0, "emb_pdrop": 0.0, "learned_pos_emb": True}),
        Implied(("embedding_fraction", "init_config", "init_device", "norm_type", "verbose", "tokenizer_name")),
    ),
    weight_rules=_RULES,
    spellings={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    prefix="transformer.",
)
