"""DeepSeek-V2 (arXiv:2405.04434) and DeepSeek-V3 (arXiv:2412.19437).

Latent attention, a few dense layers, then many small experts beside a shared one. V2 chooses experts by softmax within
the best groups, V3 by sigmoid, steered by a bias that evens their load. Published folders also hold layers that predict
further tokens; they come after the last layer and are not read.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import (
    Constant,
    Count,
    Entry,
    Field,
    Implied,
    Only,
    Rotary,
    Written,
)
from lmworks.models.families.family import Family
from lmworks.models.families.llama_like import COMMON, LLAMA_RULES, renamed, rms_norm
from lmworks.models.families.moe_like import (
    OURS,
    FirstDense,
    M,
    SharedExperts,
    TopkMethod,
    expert_count,
    expert_entries,
    expert_rules,
)
from lmworks.models.hub.rules import Rule, rename

A, _MLP = "decoder.attention.", "model.layers.{i}.mlp"
_ONE = ("gate_proj", "up_proj", "down_proj")
_LATENT = "q_a_proj q_b_proj q_a_layernorm kv_a_proj_with_mqa kv_a_layernorm kv_b_proj"


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    return (
        *LLAMA_RULES,
        *renamed("decoder.layers.{i}.self_attn", "model.layers.{i}.self_attn", _LATENT),
        rename(f"{OURS}.router.weight", f"{_MLP}.gate.weight"),
        rename(f"{OURS}.router.e_score_correction_bias", f"{_MLP}.gate.e_score_correction_bias"),
        *renamed(f"{OURS}.shared_experts", f"{_MLP}.shared_experts", " ".join(_ONE)),
        *expert_rules(expert_count(config), f"{_MLP}.experts", *_ONE),
    )


LATENT_ATTENTION: tuple[Entry, ...] = (
    Constant(f"{A}kind", "mla"),
    Count("num_key_value_heads", f"{A}num_attention_heads", 1),  # what it says is of no account here
    Count("num_attention_heads", f"{A}num_attention_heads"),
    Field("q_lora_rank", f"{A}q_lora_rank", None),
    *(Count(key, A + key) for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")),
    Field("attention_bias", f"{A}attention_bias", False),
    Implied(("head_dim", "qk_head_dim")),
    Rotary(interleaved=True),
)
V3_ROUTING: tuple[Entry, ...] = (
    Constant(f"{M}scoring_func", "sigmoid"),
    Constant(f"{M}group_score", "top2_sum"),
    Constant(f"{M}correction_bias", True),
    Field("norm_topk_prob", f"{M}norm_topk_prob", True),
    Only("scoring_func", ("sigmoid",), "the choice of V3 is by sigmoid", written="sigmoid"),
    Only("topk_method", ("noaux_tc",), "the choice of V3 is steered by a bias", written="noaux_tc"),
    Written({"num_nextn_predict_layers": 0}),
)


def family(name: str, stem: str, *entries: Entry, norm: tuple[Entry, ...] = rms_norm(1e-6)) -> Family:
    """A family with DeepSeek's experts; `entries` say how it attends and how it chooses."""
    return Family(
        name=name,
        architectures=decoder_heads(stem),
        entries=(
            *COMMON, *expert_entries("n_routed_experts", "moe_intermediate_size", aux_loss="aux_loss_alpha"),
            Field("routed_scaling_factor", f"{M}routed_scaling_factor", 1.0), SharedExperts(), FirstDense(), *norm,
            *entries, Written({"ep_size": 1, "seq_aux": True, "output_router_logits": False}),
        ),
        weight_rules=_rules,
        spellings={"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts",
                   "num_experts": "n_routed_experts"},
        prefix="model.",
        ignored_tensors=(r"layers\.{num_hidden_layers}\..*", r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    )  # fmt: skip


DEEPSEEK_V2 = family(
    "deepseek_v2", "DeepseekV2", *LATENT_ATTENTION, TopkMethod(), Constant(f"{M}norm_topk_prob", False),
    Only("norm_topk_prob", (False,), "the weights of V2's experts are not normalized", written=False),
    Only("scoring_func", ("softmax",), "the choice of V2 is by softmax", written="softmax"),
    Only("mlp_bias", (False,), "the MLPs have no biases", written=False),
)  # fmt: skip
DEEPSEEK_V3 = family(
    "deepseek_v3", "DeepseekV3", *LATENT_ATTENTION, Field("rope_interleave", "positions.interleaved", True),
    Field("n_group", f"{M}n_group", 8), Field("topk_group", f"{M}topk_group", 4), *V3_ROUTING,
)  # fmt: skip
