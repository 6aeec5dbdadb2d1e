"""GLM-4.5: GLM's attention before DeepSeek-V3's experts (arXiv:2508.06471)."""

from __future__ import annotations

from lmworks.models.families.deepseek import V3_ROUTING, family
from lmworks.models.families.entries import Field, Rotary
from lmworks.models.families.llama_like import ATTENTION, HEAD_DIM, A, rms_norm
from lmworks.models.families.moe_like import M

GLM4_MOE = family(
    "glm4_moe", "Glm4Moe", *ATTENTION, HEAD_DIM, Field("attention_bias", f"{A}qkv_bias", False),
    Field("use_qk_norm", f"{A}qk_norm", False, {True: "per_head", False: "none"}.__getitem__, "per_head".__eq__),
    Rotary(partial=0.5), Field("n_group", f"{M}n_group", 1), Field("topk_group", f"{M}topk_group", 1), *V3_ROUTING,
    norm=rms_norm(1e-5),
    presets={
        "glm-4.5": {
            "vocab_size": 151552, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
            "num_hidden_layers": 92, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
            "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "routed_scaling_factor": 2.5, "attention_bias": True, "use_qk_norm": True, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_theta": 1000000, "eos_token_id": [151329, 151336, 151338],
        },
    },
)  # fmt: skip
