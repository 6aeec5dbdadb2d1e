"""Mixtures of experts and latent attention."""

from __future__ import annotations

from lmworks.proofs.cases.case import Case

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
QWEN = {**SIZES, "intermediate_size": 72, "moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 2}
LATENT = {
    **SIZES, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 72,
    "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
    "moe_intermediate_size": 20, "n_routed_experts": 6, "num_experts_per_tok": 3, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "mscale": 0.8, "mscale_all_dim": 0.6, "beta_fast": 8.0, "beta_slow": 1.0,
}  # fmt: skip
GROUPS = {"n_group": 3, "topk_group": 2}
GLM = {
    **SIZES, "head_dim": 12, "intermediate_size": 72, "moe_intermediate_size": 20, "n_routed_experts": 6,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 2, "routed_scaling_factor": 2.0,
}  # fmt: skip
OSS = {
    **SIZES, "head_dim": 10, "intermediate_size": 20, "num_local_experts": 5, "num_experts_per_tok": 2,
    "sliding_window": 9,
}  # fmt: skip
CASES = (
    Case("mixtral", "odd experts", {**SIZES, "intermediate_size": 40, "num_local_experts": 5}, "MixtralForCausalLM"),
    Case("mixtral", "tied, windowed", {
        **SIZES, "intermediate_size": 40, "num_local_experts": 3, "sliding_window": 9, "head_dim": 10,
        "tie_word_embeddings": True,
    }, "MixtralForCausalLM"),
    Case("qwen2_moe", "shared expert", {**QWEN, "shared_expert_intermediate_size": 28}, "Qwen2MoeForCausalLM"),
    Case("qwen2_moe", "classifier", {
        **QWEN, "shared_expert_intermediate_size": 28, "norm_topk_prob": True, "num_labels": 3, "pad_token_id": 0,
    }, "Qwen2MoeForSequenceClassification"),
    Case("qwen3_moe", "every layer", {**QWEN, "head_dim": 10, "norm_topk_prob": True}, "Qwen3MoeForCausalLM"),
    Case("qwen3_moe", "some layers, tied", {
        **QWEN, "num_hidden_layers": 4, "head_dim": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "attention_bias": True, "tie_word_embeddings": True,
    }, "Qwen3MoeForCausalLM"),
    Case("olmoe", "norm over all heads", {**SIZES, "intermediate_size": 20, "num_experts": 5,
                                          "num_experts_per_tok": 3, "eos_token_id": 1}, "OlmoeForCausalLM"),
    Case("deepseek_v2", "lite", {**LATENT, "q_lora_rank": None, "rope_parameters": YARN}, "DeepseekV2ForCausalLM",
         longest=60),
    Case("deepseek_v2", "grouped, biased", {
        **LATENT, **GROUPS, "q_lora_rank": 16, "topk_method": "group_limited_greedy", "attention_bias": True,
        "tie_word_embeddings": True,
    }, "DeepseekV2ForCausalLM"),
    Case("deepseek_v3", "yarn", {**LATENT, **GROUPS, "q_lora_rank": 16, "rope_parameters": YARN},
         "DeepseekV3ForCausalLM", longest=60),
    Case("deepseek_v3", "halves, one group", {
        **LATENT, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "rope_interleave": False,
        "norm_topk_prob": False, "attention_bias": True,
    }, "DeepseekV3ForCausalLM"),
    Case("granitemoe", "factors", {
        **SIZES, "intermediate_size": 20, "num_local_experts": 5, "num_experts_per_tok": 3, "tie_word_embeddings": True,
        "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2, "logits_scaling": 2.0,
    }, "GraniteMoeForCausalLM"),
    Case("gpt_oss", "yarn", {**OSS, "rope_parameters": {**YARN, "truncate": False}}, "GptOssForCausalLM", longest=60),
    Case("gpt_oss", "windows at will, tied", {
        **OSS, "layer_types": ["full_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "swiglu_limit": 0.8,
    }, "GptOssForCausalLM"),
    Case("glm4_moe", "normed, biased", {**GLM, **GROUPS, "use_qk_norm": True, "attention_bias": True},
         "Glm4MoeForCausalLM"),
    Case("glm4_moe", "one group", {**GLM, "tie_word_embeddings": True}, "Glm4MoeForCausalLM"),
)  # fmt: skip
