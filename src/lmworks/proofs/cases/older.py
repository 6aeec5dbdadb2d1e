"""Decoders with LayerNorm, fused projections or ALiBi: what came between GPT-2 and Llama, and beside it."""

from __future__ import annotations

from lmworks.proofs.cases.case import Case

SIZES = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
NEOX = {**SIZES, "num_attention_heads": 3, "intermediate_size": 80, "max_position_embeddings": 128}
MPT = {"vocab_size": 97, "d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": 128}
OPT = {**SIZES, "ffn_dim": 80, "max_position_embeddings": 128, "word_embed_proj_dim": 48, "dropout": 0.0}
GPT = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 128, "bos_token_id": 1,
       "eos_token_id": 2}  # fmt: skip
CASES = (
    Case("gpt2", "tied", GPT, "GPT2LMHeadModel"),
    Case("gpt2", "untied, narrow, relu", {
        **GPT, "n_head": 3, "n_inner": 56, "activation_function": "relu", "tie_word_embeddings": False,
    }, "GPT2LMHeadModel"),
    Case("gpt2", "classifier", {**GPT, "num_labels": 3, "pad_token_id": 0}, "GPT2ForSequenceClassification"),
    Case("gpt2", "tagging", {**GPT, "num_labels": 3}, "GPT2ForTokenClassification"),
    Case("gpt2", "bare", GPT, "GPT2Model"),
    Case("gpt_neox", "parallel", {**NEOX, "rope_parameters": {"rope_theta": 1000.0, "partial_rotary_factor": 0.5}},
         "GPTNeoXForCausalLM"),
    Case("gpt_neox", "in turn, tied", {
        **NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True,
        "hidden_act": "gelu_fast",
    }, "GPTNeoXForCausalLM"),
    Case("gpt_neox", "classifier", {**NEOX, "num_labels": 3, "pad_token_id": 0}, "GPTNeoXForSequenceClassification"),
    Case("bloom", "six heads", SIZES, "BloomForCausalLM"),
    Case("bloom", "untied", {**SIZES, "hidden_size": 40, "num_attention_heads": 5, "tie_word_embeddings": False},
         "BloomForCausalLM"),
    Case("mpt", "six heads", MPT, "MptForCausalLM"),
    Case("mpt", "untied", {**MPT, "n_heads": 4, "tie_word_embeddings": False}, "MptForCausalLM"),
    Case("opt", "before", OPT, "OPTForCausalLM"),
    Case("opt", "after, untied", {
        **OPT, "do_layer_norm_before": False, "enable_bias": False, "tie_word_embeddings": False,
    }, "OPTForCausalLM"),
    Case("opt", "classifier", {**OPT, "num_labels": 3, "pad_token_id": 1}, "OPTForSequenceClassification"),
    Case("gptj", "part turns", {**GPT, "rotary_dim": 4}, "GPTJForCausalLM"),
    Case("gptj", "head turns as a whole", {**GPT, "rotary_dim": 8, "n_inner": 72}, "GPTJForCausalLM"),
    Case("gpt_bigcode", "multi-query", {**GPT, "n_inner": 72}, "GPTBigCodeForCausalLM"),
    Case("gpt_bigcode", "multi-head, untied", {**GPT, "multi_query": False, "tie_word_embeddings": False},
         "GPTBigCodeForCausalLM"),
    Case("falcon", "7b", SIZES, "FalconForCausalLM"),
    Case("falcon", "40b", {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2}, "FalconForCausalLM"),
    Case("falcon", "11b", {
        **SIZES, "new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1,
        "ffn_hidden_size": 80, "tie_word_embeddings": False, "bias": True,
    }, "FalconForCausalLM"),
    Case("falcon", "in turn", {
        **SIZES, "num_attention_heads": 4, "bias": True, "multi_query": False, "parallel_attn": False,
    }, "FalconForCausalLM"),
)  # fmt: skip
