"""ViT (arXiv:2010.11929) and DINOv2 (arXiv:2304.07193): class token and patches, a norm at the end.

DINOv2 gates its branches by trained vectors and counts its inner size in hidden sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.encoder_like import Inert
from lmworks.models.families.entries import Constant, Draft, Field, Only, Written, get, put
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import modules
from lmworks.models.families.hf_config import Fields
from lmworks.models.families.vision_like import INNER, A, M, S, layers, tower
from lmworks.models.hub.rules import Reshape, Rule, rename

_ATTENTION = (
    "self_attn.q_proj=attention.attention.query self_attn.k_proj=attention.attention.key "
    "self_attn.v_proj=attention.attention.value self_attn.o_proj=attention.output.dense "
)


def _around(config: ModelConfig, prefix: str) -> tuple[Rule, ...]:
    """Rules of what stands before and after the layers."""
    return (
        rename("patches.class_token", f"{prefix}embeddings.cls_token", Reshape((1, 1, -1), (1, -1))),
        rename(
            "patches.positions.weight", f"{prefix}embeddings.position_embeddings",
            Reshape((1, -1, config.hidden_size), (-1, config.hidden_size)),
        ),
        *modules("patches.projection=embeddings.patch_embeddings.projection vision.norm=layernorm", prefix, ours=""),
    )  # fmt: skip


def _vit_rules(config: ModelConfig) -> tuple[Rule, ...]:
    pairs = (
        "input_layernorm=layernorm_before post_attention_layernorm=layernorm_after mlp.up_proj=intermediate.dense "
        "mlp.down_proj=output.dense"
    )
    return (
        *_around(config, "vit."),
        *layers(_ATTENTION + pairs, "vit.encoder.layer.{i}."),
        *modules("head.pooler=vit.pooler.dense head.score=classifier", ours=""),
    )


def _dinov2_rules(config: ModelConfig) -> tuple[Rule, ...]:
    theirs = "dinov2.encoder.layer.{i}."
    pairs = "input_layernorm=norm1 post_attention_layernorm=norm2 mlp.up_proj=mlp.fc1 mlp.down_proj=mlp.fc2"
    gates = (("self_attn_residual", "layer_scale1"), ("mlp_residual", "layer_scale2"))
    return (
        *_around(config, "dinov2."),
        *layers(_ATTENTION + pairs, theirs),
        *(rename(f"vision.layers.{{i}}.{ours}.gate", f"{theirs}{scale}.lambda1") for ours, scale in gates),
    )


@dataclass(frozen=True)
class MLPRatio:
    """The inner size in hidden sizes."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        put(draft, f"{M}intermediate_size", fields.count("mlp_ratio", 4) * draft["hidden_size"])

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["mlp_ratio"] = get(draft, f"{M}intermediate_size") // draft["hidden_size"]


_DROPOUT = "hidden_dropout_prob attention_probs_dropout_prob"
VIT = Family(
    name="vit",
    architectures={
        "ViTForImageClassification": {
            "kind": "sequence_classification", "pooling": "cls", "dense_act": "none", "bias": True,
        },
        "ViTModel": {"kind": "embedding", "pooling": "cls", "pooler": True},
    },
    entries=(
        *tower(hidden_act="gelu"),
        INNER,
        Field("layer_norm_eps", f"{S}norm.eps", 1e-12),
        Field("qkv_bias", f"{A}qkv_bias", True),
        Inert(f"{_DROPOUT} encoder_stride pooler_act pooler_output_size"),
    ),
    weight_rules=_vit_rules,
    prefix="vit.",
    ignored_tensors=(r"pooler\..*",),
    optional={"head.pooler": "pooler.dense.weight"},
)  # fmt: skip
DINOV2 = Family(
    name="dinov2",
    architectures={"Dinov2Model": {"kind": "embedding", "pooling": "cls"}},
    entries=(
        *tower(hidden_act="gelu", patch_size=14),
        MLPRatio(),
        Field("layer_norm_eps", f"{S}norm.eps", 1e-6),
        Field("qkv_bias", f"{A}qkv_bias", True),
        Constant(f"{S}residual.gate", "layerscale"),
        Field("layerscale_value", f"{S}residual.layerscale_init", 1.0),
        Only("use_swiglu_ffn", (False,), "the gated feed-forward net of the giant size has fused matrices"),
        Written({"use_mask_token": False}),
        Inert(f"{_DROPOUT} drop_path_rate apply_layernorm out_features out_indices reshape_hidden_states stage_names"),
    ),
    weight_rules=_dinov2_rules,
    prefix="dinov2.",
    ignored_tensors=(r"embeddings\.mask_token",),
)
