"""Granite 3 with experts (IBM, 2024): Granite's factors, Mixtral's routing, experts stored stacked."""

from __future__ import annotations

from lmworks.models.families.entries import Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.granite import FACTORS
from lmworks.models.families.llama_like import (
    ATTENTION,
    ATTENTION_BIAS,
    COMMON,
    HEAD_DIM,
    decoder_rules,
    generates_only,
    rms_norm,
)
from lmworks.models.families.moe_like import OURS, expert_entries, stacked_rules
from lmworks.models.hub.rules import rename

_BLOCK = "model.layers.{i}.block_sparse_moe"


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
)  # fmt: skip
