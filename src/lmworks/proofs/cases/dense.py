"""Dense decoders: LLaMA and its relatives."""

from __future__ import annotations

from typing import Any

from lmworks.proofs.cases.case import Case

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
FULL, SLIDING = "full_attention", "sliding_attention"


def _case(family: str, stem: str, name: str, /, *, longest: int = 40, head: str = "ForCausalLM", **own: Any) -> Case:
    return Case(family, name, {**SIZES, **own}, f"{stem}{head}", longest)


def _rope(kind: str, /, theta: float = 10_000.0, **own: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **own}}


LLAMA3 = _rope(
    "llama3", 5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 64, "original_max_position_embeddings": 34,
    **_rope("longrope", short_factor=[1.0, 1.1, 1.3, 1.7], long_factor=[1.0, 2.0, 3.5, 6.0]),
}  # fmt: skip

_LLAMA = (
    _case("llama", "Llama", "tied", **TIED),
    _case("llama", "Llama", "biases, wide heads", **UNTIED, attention_bias=True, mlp_bias=True, head_dim=32),
    _case("llama", "Llama", "one head of keys, other activation", num_key_value_heads=1, hidden_act="gelu"),
    _case("llama", "Llama", "linear", **_rope("linear", factor=2.5)),
    _case("llama", "Llama", "dynamic, beyond the context", **_rope("dynamic", factor=2.0), max_position_embeddings=24),
    _case("llama", "Llama", "yarn", **_rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    _case(
        "llama", "Llama", "yarn, all settings",
        **_rope("yarn", factor=6.0, original_max_position_embeddings=24, beta_fast=4.0, beta_slow=0.5, mscale=0.7,
                mscale_all_dim=0.3, truncate=False),
    ),
    _case("llama", "Llama", "llama3", **LLAMA3, **TIED, eos_token_id=[2, 3]),
    _case("llama", "Llama", "longrope, beyond the context", **LONGROPE),
    _case("llama", "Llama", "classifier", num_labels=3, head="ForSequenceClassification"),
    _case("llama", "Llama", "tagger", num_labels=5, head="ForTokenClassification"),
    _case("llama", "Llama", "bare", head="Model"),
)  # fmt: skip
_MISTRAL = (
    _case("mistral", "Mistral", "window in all layers", sliding_window=8),
    _case("mistral", "Mistral", "no window", sliding_window=None, head_dim=16, **TIED),
    _case(
        "ministral",
        "Ministral",
        "window in some layers",
        sliding_window=8,
        head_dim=8,
        layer_types=[SLIDING, FULL, SLIDING],
    ),
    _case("ministral", "Ministral", "window in all layers", sliding_window=5, head_dim=10, **TIED),
)
_QWEN = (
    _case("qwen2", "Qwen2", "tied", **TIED),
    _case("qwen2", "Qwen2", "window from a layer on", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    _case(
        "qwen2", "Qwen2", "window in named layers", use_sliding_window=True, sliding_window=6,
        layer_types=[SLIDING, FULL, SLIDING],
    ),
    _case("qwen2", "Qwen2", "yarn", **_rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=16)),
    _case("qwen3", "Qwen3", "tied", head_dim=16, **TIED),
    _case(
        "qwen3", "Qwen3", "biases and windows", head_dim=10, attention_bias=True, use_sliding_window=True,
        sliding_window=8, max_window_layers=0,
    ),
    _case("qwen3", "Qwen3", "yarn", head_dim=8, **_rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=16)),
)  # fmt: skip
_GEMMA = (
    _case("gemma", "Gemma", "tied", head_dim=16),
    _case("gemma", "Gemma", "untied, one head of keys", head_dim=10, num_key_value_heads=1, **UNTIED),
    _case("gemma2", "Gemma2", "caps and windows", head_dim=16, sliding_window=8, query_pre_attn_scalar=20),
    _case(
        "gemma2", "Gemma2", "tight caps, no windows", head_dim=8, sliding_window=8, layer_types=[FULL] * 3,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    _case("gemma2", "Gemma2", "no caps, named windows", head_dim=8, sliding_window=5, attn_logit_softcapping=None,
          final_logit_softcapping=None, layer_types=[FULL, SLIDING, SLIDING], **UNTIED),
    _case("gemma2", "Gemma2", "classifier", head_dim=8, num_labels=3, head="ForSequenceClassification"),
    _case("vaultgemma", "VaultGemma", "caps and windows", head_dim=16, sliding_window=8, attn_logit_softcapping=2.0),
    _case("gemma3_text", "Gemma3", "five of six layers local", head_dim=16, sliding_window=8, num_hidden_layers=7,
          query_pre_attn_scalar=12),
    _case(
        "gemma3_text", "Gemma3", "scaled global layers, cap", head_dim=8, sliding_window=6,
        layer_types=[SLIDING, FULL, SLIDING], final_logit_softcapping=5.0,
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 5e3},
        },
    ),
    _case("gemma3_text", "Gemma3", "all local", head_dim=8, sliding_window=6, layer_types=[SLIDING] * 3),
    _case("gemma3_text", "Gemma3", "all global", head_dim=8, sliding_window=6, layer_types=[FULL] * 3),
)  # fmt: skip
_PHI = (
    _case("phi3", "Phi3", "window", sliding_window=8, **TIED),
    _case("phi3", "Phi3", "longrope, beyond the context", **LONGROPE),
    _case("phi3", "Phi3", "longrope, within the context", **LONGROPE, longest=20),
    _case(
        "phi3", "Phi3", "longrope over part of the head", **LONGROPE | _rope(
            "longrope", short_factor=[1.0, 1.3], long_factor=[1.0, 4.0], partial_rotary_factor=0.5
        ),
    ),
    _case("phi", "Phi", "half of each head turns"),
    _case("phi", "Phi", "other share", **_rope("default", partial_rotary_factor=0.25), num_key_value_heads=3),
)  # fmt: skip
_GLM = (
    _case("glm", "Glm", "half of each head turns, in pairs", head_dim=8),
    _case("glm", "Glm", "other share, no bias, tied", head_dim=16, attention_bias=False, **TIED,
          **_rope("default", partial_rotary_factor=0.25)),
    _case("glm4", "Glm4", "norms on outputs", head_dim=12),
    _case("glm4", "Glm4", "no bias", head_dim=8, attention_bias=False, **TIED),
)  # fmt: skip
_OLMO = (
    _case("olmo", "Olmo", "norms without weights"),
    _case("olmo", "Olmo", "tied, biases", attention_bias=True, **TIED),
    _case("olmo2", "Olmo2", "norms on outputs, of whole queries"),
    _case("olmo2", "Olmo2", "tied, biases, linear", attention_bias=True, **TIED, **_rope("linear", factor=2.0)),
    _case("olmo3", "Olmo3", "windows", num_hidden_layers=5, sliding_window=8),
    _case(
        "olmo3", "Olmo3", "yarn where all is seen", sliding_window=6, layer_types=[FULL, SLIDING, FULL],
        rope_parameters={
            FULL: {"rope_type": "yarn", "factor": 8.0, "rope_theta": 5e5, "original_max_position_embeddings": 16},
            SLIDING: {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
)  # fmt: skip
_OTHERS = (
    _case("arcee", "Arcee", "squared ReLU", mlp_bias=True),
    _case("seed_oss", "SeedOss", "biases, wide heads", head_dim=16, attention_out_bias=True, residual_dropout=0.0),
    _case("helium", "Helium", "pairs", head_dim=8),
    _case("ernie4_5", "Ernie4_5", "pairs", head_dim=8),
    _case("ernie4_5", "Ernie4_5", "biases, untied", head_dim=12, use_bias=True, **UNTIED),
    _case("granite", "Granite", "factors", embedding_multiplier=6.0, residual_multiplier=0.22,
          attention_multiplier=0.2, logits_scaling=7.0, attention_bias=True, mlp_bias=True),
    _case("granite", "Granite", "tied", **TIED, attention_multiplier=0.125),
    _case("cohere", "Cohere", "side by side", logit_scale=0.3),
    _case("cohere", "Cohere", "untied, biases", attention_bias=True, **UNTIED),
    _case("cohere2", "Cohere2", "windows and no positions", num_hidden_layers=5, sliding_window=8, logit_scale=0.25),
    _case("stablelm", "StableLm", "one after the other", **_rope("default", partial_rotary_factor=0.25)),
    _case("stablelm", "StableLm", "side by side", use_qkv_bias=True, use_parallel_residual=True, **TIED),
    _case("starcoder2", "Starcoder2", "window", sliding_window=8, residual_dropout=0.0, embedding_dropout=0.0),
    _case("starcoder2", "Starcoder2", "untied, no biases", use_bias=False, **UNTIED),
    _case("smollm3", "SmolLM3", "every fourth without positions", num_hidden_layers=5),
    _case("smollm3", "SmolLM3", "named layers", no_rope_layers=[0, 1, 0], **UNTIED),
    _case("nemotron", "Nemotron", "norms less one"),
    _case("nemotron", "Nemotron", "biases", attention_bias=True, mlp_bias=True, head_dim=12, **TIED),
    _case("exaone4", "Exaone4", "windows and no positions", num_hidden_layers=5, sliding_window=8, head_dim=8),
    _case("exaone4", "Exaone4", "no windows", sliding_window=None, layer_types=[FULL] * 3, head_dim=8, **TIED),
)  # fmt: skip
CASES = (*_LLAMA, *_MISTRAL, *_QWEN, *_GEMMA, *_PHI, *_GLM, *_OLMO, *_OTHERS)
"""Models of this group."""
