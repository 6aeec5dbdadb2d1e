"""Qwen2 (arXiv:2407.10671): Llama with biases of queries, keys and values; Qwen3 (arXiv:2505.09388): with their norms.

Some layers may see a window only, from `max_window_layers` on.
"""

from __future__ import annotations

from lmworks.models.families.entries import Constant, Field, Only
from lmworks.models.families.llama_like import ATTENTION_BIAS, A, SlidingLayers, decoder

_WINDOWS = SlidingLayers(window=4096, switched=True)

QWEN2 = decoder(
    "qwen2", "Qwen2", Constant(f"{A}qkv_bias", True),
    Only("attention_bias", (True,), "Qwen2's projections of queries, keys and values have biases"),
    Only("use_mrope", (False,), "positions have one axis here"), _WINDOWS,
)  # fmt: skip

QWEN3 = decoder(
    "qwen3", "Qwen3", Field("head_dim", f"{A}head_dim", 128), Constant(f"{A}qk_norm", "per_head"), ATTENTION_BIAS,
    _WINDOWS,
)  # fmt: skip
