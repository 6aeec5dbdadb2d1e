"""Mixtral: Mistral whose MLPs are eight, of which each token takes two (arXiv:2401.04088)."""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.llama_like import (
    ATTENTION,
    COMMON,
    HEAD_DIM,
    SlidingLayers,
    decoder_rules,
    rms_norm,
)
from lmworks.models.families.moe_like import OURS, expert_count, expert_entries, expert_rules
from lmworks.models.hub.rules import Rule, rename

_BLOCK = "model.layers.{i}.block_sparse_moe"


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    return (
        *decoder_rules(mlp=""),
        rename(f"{OURS}.router.weight", f"{_BLOCK}.gate.weight"),
        *expert_rules(expert_count(config), f"{_BLOCK}.experts", "w1", "w3", "w2"),
    )


MIXTRAL = Family(
    name="mixtral",
    architectures=decoder_heads("Mixtral"),
    entries=(
        *COMMON, *ATTENTION, HEAD_DIM, *expert_entries("num_local_experts", "intermediate_size"), *rms_norm(1e-5),
        Rotary(1e6), SlidingLayers(typed=False),
        Written({"router_jitter_noise": 0.0, "output_router_logits": False}),
    ),
    weight_rules=_rules,
    spellings={"num_experts": "num_local_experts"},
    prefix="model.",
)  # fmt: skip
