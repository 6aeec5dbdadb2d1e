"""Mixtral: Mistral whose MLPs are eight, of which each token takes two (arXiv:2401.04088)."""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import HFConfig
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


def _preset(vocab_size: int, hidden_size: int, inner: int, layers: int, heads: int, *, context: int) -> HFConfig:
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": context, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.02,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


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
    hf_presets={
        "mixtral-8x7b": _preset(32000, 4096, 14336, 32, 32, context=32768),
        "mixtral-8x22b": _preset(32768, 6144, 16384, 56, 48, context=65536),
    },
)  # fmt: skip
