"""Qwen2 (arXiv:2407.10671): Llama with biases of queries, keys and values; Qwen3 (arXiv:2505.09388): with their norms.

Some layers may see a window only, from `max_window_layers` on.
"""

from __future__ import annotations

from typing import Any

from lmworks.models.families.entries import Constant, Field, Only
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.families.llama_like import ATTENTION_BIAS, A, SlidingLayers, decoder, preset


def _qwen2(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, **further: Any
) -> HFConfig:
    vocab_size = 151936 if hidden_size < 3584 else 152064
    return preset(vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, 32768, rope_theta=1e6, **further)


def _qwen3(hidden_size: int, intermediate_size: int, layers: int, heads: int, **further: Any) -> HFConfig:
    return preset(
        151936, hidden_size, intermediate_size, layers, heads, 8, 40960, head_dim=128, rope_theta=1e6, **further
    )


_WINDOWS = SlidingLayers(window=4096, switched=True)

QWEN2 = decoder(
    "qwen2", "Qwen2", Constant(f"{A}qkv_bias", True),
    Only("attention_bias", (True,), "Qwen2's projections of queries, keys and values have biases"),
    Only("use_mrope", (False,), "positions have one axis here"), _WINDOWS,
    presets={
        "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, tie_word_embeddings=True),
        "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, tie_word_embeddings=True),
        "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, tie_word_embeddings=True),
        "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4),
        "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, rms_norm_eps=1e-5),
        "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8, rms_norm_eps=1e-5),
        "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8, rms_norm_eps=1e-5),
    },
)  # fmt: skip

QWEN3 = decoder(
    "qwen3", "Qwen3", Field("head_dim", f"{A}head_dim", 128), Constant(f"{A}qk_norm", "per_head"), ATTENTION_BIAS,
    _WINDOWS,
    presets={
        "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tie_word_embeddings=True),
        "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tie_word_embeddings=True),
        "qwen3-4b": _qwen3(2560, 9728, 36, 32, tie_word_embeddings=True),
        "qwen3-8b": _qwen3(4096, 12288, 36, 32),
        "qwen3-14b": _qwen3(5120, 17408, 40, 40),
        "qwen3-32b": _qwen3(5120, 25600, 64, 64),
    },
)  # fmt: skip
