"""Mixtures of experts with Qwen's names: Qwen2-MoE (arXiv:2407.10671), Qwen3-MoE (arXiv:2505.09388), OLMoE.

Qwen2-MoE adds a shared expert that each token opens with a gate of its own; OLMoE (arXiv:2409.02060) normalizes whole
projections of queries and keys.
"""

from __future__ import annotations

from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Count, Entry, Field, Implied, Only, Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import HFConfig
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
    name: str, stem: str, inner: str, *entries: Entry, presets: dict[str, HFConfig],
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
        hf_presets=presets,
    )  # fmt: skip


_NO_WINDOW = (
    Only("use_sliding_window", (False,), "windows are not supported beside experts", written=False),
    Implied(("sliding_window", "layer_types")),
)


def _preset(
    vocab_size: int, hidden_size: int, layers: int, heads: int, kv_heads: int, experts: int, per_token: int,
    inner: int, *, context: int, **others: Any,
) -> HFConfig:  # fmt: skip
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_experts": experts,
        "num_experts_per_tok": per_token, "moe_intermediate_size": inner, "max_position_embeddings": context,
        "rope_theta": 1e6, "router_aux_loss_coef": 0.001, **others,
    }  # fmt: skip


QWEN2_MOE = _family(
    "qwen2_moe", "Qwen2Moe", "moe_intermediate_size", HEAD_DIM, *_NO_WINDOW, SparseStep(),
    Field("qkv_bias", f"{Q}qkv_bias", True), Constant(f"{M}shared_expert_gate", True),
    Count("shared_expert_intermediate_size", f"{M}shared_intermediate_size", 5632),
    presets={
        "qwen1.5-moe-a2.7b": _preset(
            151936, 2048, 24, 16, 16, 60, 4, 1408, context=8192, shared_expert_intermediate_size=5632,
            intermediate_size=5632, bos_token_id=151643, eos_token_id=151643,
        ),
        "qwen2-57b-a14b": _preset(
            151936, 3584, 28, 28, 4, 64, 8, 2560, context=131072, shared_expert_intermediate_size=20480,
            intermediate_size=18944, bos_token_id=151643, eos_token_id=151643,
        ),
    },
)  # fmt: skip
QWEN3_MOE = _family(
    "qwen3_moe", "Qwen3Moe", "moe_intermediate_size", *_NO_WINDOW, SparseStep(),
    Field("head_dim", f"{Q}head_dim", divided_head_dim), Constant(f"{Q}qk_norm", "per_head"),
    ATTENTION_BIAS,
    presets={
        "qwen3-30b-a3b": _preset(
            151936, 2048, 48, 32, 4, 128, 8, 768, context=40960, head_dim=128, intermediate_size=6144,
            norm_topk_prob=True, bos_token_id=151643, eos_token_id=151645,
        ),
        "qwen3-235b-a22b": _preset(
            151936, 4096, 94, 64, 4, 128, 8, 1536, context=40960, head_dim=128, intermediate_size=12288,
            norm_topk_prob=True, bos_token_id=151643, eos_token_id=151645,
        ),
    },
)  # fmt: skip
OLMOE = _family(
    "olmoe", "Olmoe", "intermediate_size", HEAD_DIM, Constant(f"{Q}qk_norm", "full"),
    ATTENTION_BIAS,
    Only("clip_qkv", (), "queries, keys and values are not clipped"), norm=rms_norm(1e-5),
    presets={
        "olmoe-1b-7b": {
            "vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
            "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 1024,
            "max_position_embeddings": 4096, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.01,
            "norm_topk_prob": False, "eos_token_id": 50279,
        },
    },
)  # fmt: skip
