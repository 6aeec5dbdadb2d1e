"""Mistral 7B: Llama with a sliding window in all layers (arXiv:2310.06825); Ministral: in the layers it names."""

from __future__ import annotations

from lmworks.models.families.entries import Only
from lmworks.models.families.llama_like import SlidingLayers, decoder, preset

_NO_BIAS = Only("attention_bias", (False,), "Mistral's projections have none")

MISTRAL = decoder(
    "mistral", "Mistral", _NO_BIAS, SlidingLayers(window=4096, typed=False),
    presets={
        "mistral-7b-v0.1": preset(32000, 4096, 14336, 32, 32, 8, 32768, rms_norm_eps=1e-5, sliding_window=4096),
        "mistral-7b-v0.3": preset(
            32768, 4096, 14336, 32, 32, 8, 32768, rope_theta=1e6, rms_norm_eps=1e-5, sliding_window=None
        ),
        "mistral-nemo-12b": preset(
            131072, 5120, 14336, 40, 32, 8, 131072, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-5,
            sliding_window=None,
        ),
        "mistral-small-24b": preset(
            131072, 5120, 32768, 40, 32, 8, 32768, head_dim=128, rope_theta=1e8, rms_norm_eps=1e-5,
            sliding_window=None,
        ),
    },
)  # fmt: skip

MINISTRAL = decoder(
    "ministral", "Ministral", _NO_BIAS, SlidingLayers(window=4096),
    presets={
        "ministral-8b": preset(
            131072, 4096, 12288, 36, 32, 8, 32768, head_dim=128, rope_theta=1e8, rms_norm_eps=1e-5,
            sliding_window=32768, layer_types=["full_attention", *["sliding_attention"] * 3] * 9,
        )
    },
)  # fmt: skip
