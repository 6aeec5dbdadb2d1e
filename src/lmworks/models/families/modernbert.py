"""ModernBERT: rotary positions, pre-norm, gated GELU (Warner et al., 2024, arXiv:2412.13663).

Most layers see a window on both sides and turn faster; the first layer takes the embeddings' norm as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.models.families.architectures import HeadField, HeadSpec, encoder_heads
from lmworks.models.families.encoder_like import (
    A,
    Inert,
    M,
    common,
    encoder_rules,
    modules,
)
from lmworks.models.families.entries import Constant, Count, Draft, Field, Rotary, get, letters, put, tiled
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule, Split, rename

LABELED = ("sequence_classification", "token_classification", "question_answering")
TYPES = {"": "full_attention", "L": "sliding_attention"}
"""Letters of the pattern to `layer_types`."""


@dataclass(frozen=True)
class LocalLayers:
    """Which layers see a window, `L` in the pattern, and how fast each kind turns."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        count, every = get(draft, "encoder.num_hidden_layers"), fields.count("global_attn_every_n_layers", 3)
        window = fields.count("local_attention", 128) // 2 + 1
        default = [TYPES["L" if i % every else ""] for i in range(count)]
        local = [kind == TYPES["L"] for kind in fields.take("layer_types", default)]
        nested = fields.take("rope_parameters", None) or {}
        thetas = {"": fields.take("global_rope_theta", 160_000.0), "L": fields.take("local_rope_theta", 10_000.0)}
        positions = {}
        for letter, kind in TYPES.items():
            said = {"rope_parameters": nested.get(kind) or {"rope_type": "default", "rope_theta": thetas[letter]}}
            Rotary(thetas[letter], ours=f"rotary.{letter}").read(Fields(said), draft)
            positions[letter] = get(draft.pop("rotary"), letter)
        put(draft, "positions", positions[""])
        if any(local):
            attention = {**get(draft, "encoder.attention"), "sliding_window": window}
            put(draft, "encoder.pattern", tiled(["L" if is_local else "F" for is_local in local]) or "L")
            put(draft, "encoder.layers", {"L": {"attention": attention, "positions": positions["L"]}})

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        rotary: dict[str, Any] = {}
        Rotary().write(draft, rotary)
        nested = {TYPES[""]: rotary["rope_parameters"]}
        if local := get(draft, "encoder.layers.L"):
            hf["local_attention"] = 2 * (local["attention"]["sliding_window"] - 1)
            Rotary(ours="encoder.layers.L.positions").write(draft, rotary)
            nested[TYPES["L"]] = rotary["rope_parameters"]
            hf["local_rope_theta"] = nested[TYPES["L"]]["rope_theta"]
        hf["global_rope_theta"], hf["rope_parameters"] = nested[TYPES[""]]["rope_theta"], nested
        hf["layer_types"] = [TYPES.get(letter, TYPES[""]) for letter in letters(draft, "encoder")]


def _with_norm(heads: dict[str, HeadSpec]) -> dict[str, HeadSpec]:
    normed: dict[str, HeadSpec] = {}
    for name, head in heads.items():
        added = {"dense_norm": True} if head["kind"] in LABELED else {}
        normed[name] = {k: v for k, v in head.items() if k not in ("dense_act", "pooling")} | added
        if head["kind"] == "embedding":
            normed[name] = head
    return normed


_QKV = tuple(f"encoder.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")
_GATED = tuple(f"encoder.layers.{{i}}.mlp.{p}_proj" for p in ("gate", "up"))
_FUSED = tuple(
    Rule(tuple(f"{n}.{leaf}" for n in ours), (f"model.layers.{{i}}.{theirs}.{leaf}",), (Split(),))
    for ours, theirs in ((_QKV, "attn.Wqkv"), (_GATED, "mlp.Wi"))
    for leaf in ("weight", "bias")
)
_HEAD = {"dense": "head.dense", "norm": "head.norm", "score": "classifier"}


MODERNBERT = Family(
    name="modernbert",
    architectures=_with_norm(encoder_heads("ModernBert", lm_act="gelu", classifier_act="gelu")),
    entries=(
        *common(pad=50283, eps="norm_eps", eps_default=1e-5, act_key="hidden_activation"),
        Count("max_position_embeddings", "max_position_embeddings", 8192),
        Field("norm_bias", "encoder.norm.bias embed.norm.bias", False),
        Field("attention_bias", f"{A}qkv_bias {A}o_bias", False),
        Field("mlp_bias", f"{M}bias", False),
        Constant(f"{M}gated", True),
        Constant("encoder.first_norm", False),
        HeadField("classifier_activation", "dense_act", "gelu", ("masked_lm", *LABELED)),
        HeadField("classifier_bias", "dense_bias", False, ("masked_lm", *LABELED)),
        HeadField("classifier_pooling", "pooling", "cls", LABELED[:1]),
        HeadField("decoder_bias", "bias", True, ("masked_lm",)),
        LocalLayers(),
        Inert(
            "embedding_dropout mlp_dropout classifier_dropout cls_token_id sep_token_id deterministic_flash_attn "
            "initializer_cutoff_factor reference_compile repad_logits_with_grad sparse_prediction "
            "sparse_pred_ignore_index gradient_checkpointing layer_norm_eps position_embedding_type"
        ),
    ),
    weight_rules=encoder_rules(
        (
            rename("embed_tokens.weight", "model.embeddings.tok_embeddings.weight"),
            *modules("encoder.", "model.", {"embed_norm": "embeddings.norm", "norm": "final_norm"}),
        ),
        (
            "model.layers.{i}.",
            {
                "self_attn.o_proj": "attn.Wo",
                "mlp.down_proj": "mlp.Wo",
                "input_layernorm": "attn_norm",
                "post_attention_layernorm": "mlp_norm",
            },
        ),
        dict.fromkeys(("masked_lm", *LABELED), _HEAD),
        "decoder",
        "decoder.bias",
        _FUSED,
    ),
    prefix="model.",
    tied=("decoder.weight",),
)
