"""Mixtures of experts with Qwen's names: Qwen2-MoE (arXiv:2407.10671), Qwen3-MoE (arXiv:2505.09388), OLMoE.

Qwen2-MoE adds a shared expert that each token opens with a gate of its own; OLMoE (arXiv:2409.02060) normalizes whole
projections of queries and keys.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Count, Entry, Field, Implied, Only, Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.llama_like import (
    ATTENTION,
    ATTENTION_BIAS,
    COMMON,
    HEAD_DIM,
    LLAMA_RULES,
    divided_head_dim,
    renamed,
    rms_norm,
)
from lmworks.models.families.moe_like import OURS, M, SparseStep, expert_count, expert_entries, expert_rules
from lmworks.models.hub.rules import Rule, rename

Q = "decoder.attention."
_MLP = "model.layers.{i}.mlp"
_ONE = tuple(f"{name}_proj" for name in ("gate", "up", "down"))


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    return (
        *LLAMA_RULES,
        rename(f"{OURS}.router.weight", f"{_MLP}.gate.weight"),
        rename(f"{OURS}.shared_expert_gate.weight", f"{_MLP}.shared_expert_gate.weight"),
        *renamed(f"{OURS}.shared_experts", f"{_MLP}.shared_expert", " ".join(_ONE)),
        *expert_rules(expert_count(config), f"{_MLP}.experts", *_ONE),
    )


def _family(
    name: str, stem: str, inner: str, *entries: Entry,
    norm: tuple[Entry, ...] = rms_norm(1e-6),
) -> Family:  # fmt: skip
    return Family(
        name=name,
        architectures=decoder_heads(stem),
        entries=(
            *COMMON, *ATTENTION, *expert_entries("num_experts", inner),
            Field("norm_topk_prob", f"{M}norm_topk_prob", False), *norm, Rotary(), *entries,
            Written({"output_router_logits": False}),
        ),
        weight_rules=_rules,
        spellings={"num_local_experts": "num_experts"},
        prefix="model.",
    )  # fmt: skip


_NO_WINDOW = (
    Only("use_sliding_window", (False,), "windows are not supported beside experts", written=False),
    Implied(("sliding_window", "layer_types")),
)


QWEN2_MOE = _family(
    "qwen2_moe", "Qwen2Moe", "moe_intermediate_size", HEAD_DIM, *_NO_WINDOW, SparseStep(),
    Field("qkv_bias", f"{Q}qkv_bias", True), Constant(f"{M}shared_expert_gate", True),
    Count("shared_expert_intermediate_size", f"{M}shared_intermediate_size", 5632),
)  # fmt: skip
QWEN3_MOE = _family(
    "qwen3_moe", "Qwen3Moe", "moe_intermediate_size", *_NO_WINDOW, SparseStep(),
    Field("head_dim", f"{Q}head_dim", divided_head_dim), Constant(f"{Q}qk_norm", "per_head"),
    ATTENTION_BIAS,
)  # fmt: skip
OLMOE = _family(
    "olmoe", "Olmoe", "intermediate_size", HEAD_DIM, Constant(f"{Q}qk_norm", "full"),
    ATTENTION_BIAS,
    Only("clip_qkv", (), "queries, keys and values are not clipped"), norm=rms_norm(1e-5),
)  # fmt: skip
