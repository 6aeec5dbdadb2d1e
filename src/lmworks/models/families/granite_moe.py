"""Granite 3 with experts (IBM, 2024): Granite's factors, Mixtral's routing, experts stored stacked."""

from __future__ import annotations

from lmworks.models.families.entries import Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.granite import FACTORS
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.families.llama_like import (
    ATTENTION,
    ATTENTION_BIAS,
    COMMON,
    HEAD_DIM,
    decoder_rules,
    generates_only,
    preset,
    rms_norm,
)
from lmworks.models.families.moe_like import OURS, expert_entries, stacked_rules
from lmworks.models.hub.rules import rename

_BLOCK = "model.layers.{i}.block_sparse_moe"


def _preset(hidden: int, inner: int, layers: int, heads: int, experts: int, scale: float, logits: float) -> HFConfig:
    return preset(
        49155, hidden, inner, layers, heads, 8, 4096, num_local_experts=experts, num_experts_per_tok=8,
        rope_theta=10000.0, rms_norm_eps=1e-6, tie_word_embeddings=True, embedding_multiplier=12.0,
        residual_multiplier=0.22, attention_multiplier=scale, logits_scaling=logits, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


GRANITE_MOE = Family(
    name="granitemoe",
    architectures=generates_only("GraniteMoe"),
    entries=(
        *COMMON, *ATTENTION, HEAD_DIM, ATTENTION_BIAS, *expert_entries("num_local_experts", "intermediate_size"),
        *rms_norm(1e-6), *FACTORS, Rotary(), Written({"output_router_logits": False}),
    ),
    weight_rules=(
        *decoder_rules(mlp=""),
        rename(f"{OURS}.router.weight", f"{_BLOCK}.router.layer.weight"),
        *stacked_rules(f"{_BLOCK}.input_linear.weight", f"{_BLOCK}.output_linear.weight"),
    ),
    prefix="model.",
    hf_presets={
        "granite-3.0-1b-a400m": _preset(1024, 512, 24, 16, 32, 0.015625, 6.0),
        "granite-3.0-3b-a800m": _preset(1536, 512, 32, 24, 40, 0.015625, 6.0),
    },
)  # fmt: skip
