"""Models of images: ViT and its relatives; and the towers of CLIP, of which one reads texts."""

from __future__ import annotations

from lmworks.proofs.cases.case import Case

SIZES = {
    "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50, "image_size": 22,
    "patch_size": 5,
}  # fmt: skip
DINOV2 = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "mlp_ratio": 2}
TEXT = {
    "vocab_size": 101, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50,
    "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip

CASES: tuple[Case, ...] = (
    Case("vit", "bare", SIZES, "ViTModel"),
    Case("vit", "labels", {**SIZES, "num_labels": 5}, "ViTForImageClassification"),
    Case("vit", "one label, gray", {**SIZES, "num_labels": 1, "num_channels": 1}, "ViTForImageClassification"),
    Case("vit", "no biases of queries", {**SIZES, "qkv_bias": False, "hidden_act": "gelu_new"}, "ViTModel"),
    Case("dinov2", "bare", DINOV2, "Dinov2Model"),
    Case("clip_vision_model", "bare", SIZES, "CLIPVisionModel"),
    Case("clip_vision_model", "projected", {**SIZES, "projection_dim": 20}, "CLIPVisionModelWithProjection"),
    Case("clip_text_model", "bare", TEXT, "CLIPTextModel"),
    Case("clip_text_model", "projected", {**TEXT, "projection_dim": 20}, "CLIPTextModelWithProjection"),
    Case("clip_text_model", "GELU", {**TEXT, "hidden_act": "gelu"}, "CLIPTextModelWithProjection"),
)
