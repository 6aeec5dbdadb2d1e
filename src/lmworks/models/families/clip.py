"""CLIP's towers (arXiv:2103.00020): images with a norm before the first layer, texts read causally up to their end.

The vector of an image is its class token's after a norm of its own, the vector of a text its last token's; with a
projection both are in one space.
"""

from __future__ import annotations

from lmworks.models.families.architectures import HeadField
from lmworks.models.families.encoder_like import Inert
from lmworks.models.families.entries import Constant, Field
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A as TEXT_ATTENTION
from lmworks.models.families.gpt_like import modules, sizes
from lmworks.models.families.vision_like import INNER, A, S, layers, tower
from lmworks.models.hub.rules import Reshape, rename

_LAYER = (
    "self_attn.q_proj=self_attn.q_proj self_attn.k_proj=self_attn.k_proj self_attn.v_proj=self_attn.v_proj "
    "self_attn.o_proj=self_attn.out_proj mlp.up_proj=mlp.fc1 mlp.down_proj=mlp.fc2 input_layernorm=layer_norm1 "
    "post_attention_layernorm=layer_norm2"
)
_PROJECTION = HeadField("projection_dim", "projection_dim", 512, ("projection",))
_POSITION_IDS = (r"embeddings\.position_ids",)

CLIP_VISION = Family(
    name="clip_vision_model",
    architectures={
        "CLIPVisionModelWithProjection": {"kind": "projection", "pooling": "cls", "pooled_norm": True},
        "CLIPVisionModel": {"kind": "embedding", "pooling": "cls", "pooled_norm": True},
    },
    entries=(
        *tower(hidden_act="quick_gelu", patch_size=32),
        INNER,
        Constant("vision.norm.kind", "layer"),
        Field("layer_norm_eps", f"{S}norm.eps vision.norm.eps", 1e-5),
        Constant("vision.patch_bias", False),
        Constant(f"{A}qkv_bias", True),
        Constant(f"{S}final_norm", False),
        _PROJECTION,
        Inert("initializer_factor dropout"),
    ),
    weight_rules=(
        rename("patches.class_token", "vision_model.embeddings.class_embedding", Reshape((-1,), (1, -1))),
        *modules(
            "patches.projection=embeddings.patch_embedding patches.positions=embeddings.position_embedding "
            "vision.embed_norm=pre_layrnorm head.norm=post_layernorm", "vision_model.", ours="",
        ),
        *layers(_LAYER, "vision_model.encoder.layers.{i}."),
        *modules("head.score=visual_projection", ours=""),
    ),
    prefix="vision_model.",
    ignored_tensors=_POSITION_IDS,
)  # fmt: skip
CLIP_TEXT = Family(
    name="clip_text_model",
    architectures={
        "CLIPTextModelWithProjection": {"kind": "projection", "pooling": "last"},
        "CLIPTextModel": {"kind": "embedding", "pooling": "last"},
    },
    entries=(
        *sizes(
            inner="intermediate_size", eps="layer_norm_eps", act=("hidden_act", "quick_gelu"), tied=False, longest=77
        ),
        Constant("positions", {"kind": "learned"}),
        Constant(f"{TEXT_ATTENTION}qkv_bias", True),
        Constant(f"{TEXT_ATTENTION}o_bias", True),
        _PROJECTION,
        Inert("initializer_factor dropout"),
    ),
    weight_rules=(
        *modules(
            "embed_tokens=embeddings.token_embedding decoder.embed_positions=embeddings.position_embedding "
            "decoder.norm=final_layer_norm", "text_model.", ours="",
        ),
        *modules(_LAYER, "text_model.encoder.layers.{i}."),
        *modules("head.score=text_projection", ours=""),
    ),
    prefix="text_model.",
    ignored_tensors=_POSITION_IDS,
)  # fmt: skip
