"""LLaMA and the families that differ from it in a few values: Mistral, Qwen2, Qwen3.

Pre-norm RMSNorm, rotary positions, gated SiLU MLP (Touvron et al., 2023, arXiv:2302.13971; Llama 3,
arXiv:2407.21783; Mistral 7B, arXiv:2310.06825; Qwen2, arXiv:2407.10671; Qwen3, arXiv:2505.09388).
"""

from __future__ import annotations

from typing import Any

from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Entry, Field, Only, Rotary
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.families.llama_like import (
    ATTENTION,
    COMMON,
    HEAD_DIM,
    LLAMA_RULES,
    MLP,
    RMS_NORM,
    SlidingLayers,
)

Q = "decoder.attention."


def _family(name: str, stem: str, *entries: Entry, presets: dict[str, HFConfig]) -> Family:
    return Family(
        name=name,
        architectures=decoder_heads(stem),
        entries=(*COMMON, *ATTENTION, *entries, *MLP, RMS_NORM, Rotary(), SlidingLayers()),
        weight_rules=LLAMA_RULES,
        prefix="model.",
        ignored_tensors=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        hf_presets=presets,
    )


def _preset(
    vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, *,
    context: int, head_dim: int | None = None, theta: float = 10_000.0, factor: float | None = None,
    eps: float = 1e-5, tied: bool = False,
) -> HFConfig:  # fmt: skip
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if factor is not None:
        rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192}  # fmt: skip
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": context, "rope_parameters": rope, "rms_norm_eps": eps,
        "tie_word_embeddings": tied, "head_dim": head_dim,
    }  # fmt: skip


LLAMA = _family(
    "llama", "Llama", HEAD_DIM, Field("attention_bias", f"{Q}qkv_bias {Q}o_bias", False),
    Field("mlp_bias", "decoder.mlp.bias", False),
    presets={
        "llama-7b": _preset(32000, 4096, 11008, 32, 32, 32, context=2048, eps=1e-6),
        "llama-2-7b": _preset(32000, 4096, 11008, 32, 32, 32, context=4096),
        "llama-3-8b": _preset(128256, 4096, 14336, 32, 32, 8, context=8192, theta=5e5),
        "llama-3.1-8b": _preset(128256, 4096, 14336, 32, 32, 8, context=131072, theta=5e5, factor=8.0),
        "llama-3.2-1b": _preset(
            128256, 2048, 8192, 16, 32, 8, context=131072, head_dim=64, theta=5e5, factor=32.0, tied=True
        ),
        "smollm2-135m": _preset(49152, 576, 1536, 30, 9, 3, context=8192, theta=1e5, tied=True),
    },
)  # fmt: skip
MISTRAL = _family(
    "mistral", "Mistral", HEAD_DIM, Only("attention_bias", (False,), "Mistral's projections have none"),
    presets={"mistral-7b-v0.3": _preset(32768, 4096, 14336, 32, 32, 8, context=32768, theta=1e6)},
)  # fmt: skip
QWEN2 = _family(
    "qwen2", "Qwen2", HEAD_DIM, Constant(f"{Q}qkv_bias", True),
    Only("attention_bias", (True,), "Qwen2's projections of queries, keys and values have biases"),
    presets={
        "qwen2.5-0.5b": _preset(151936, 896, 4864, 24, 14, 2, context=32768, theta=1e6, eps=1e-6, tied=True),
        "qwen2.5-7b": _preset(152064, 3584, 18944, 28, 28, 4, context=131072, theta=1e6, eps=1e-6),
    },
)  # fmt: skip
QWEN3 = _family(
    "qwen3", "Qwen3", Field("head_dim", f"{Q}head_dim", 128), Constant(f"{Q}qk_norm", "per_head"),
    Field("attention_bias", f"{Q}qkv_bias {Q}o_bias", False),
    presets={
        "qwen3-0.6b": _preset(151936, 1024, 3072, 28, 16, 8, context=40960, theta=1e6, eps=1e-6, tied=True),
        "qwen3-8b": _preset(151936, 4096, 12288, 36, 32, 8, context=40960, theta=1e6, eps=1e-6),
    },
)  # fmt: skip
