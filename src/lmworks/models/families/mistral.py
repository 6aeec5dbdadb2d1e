"""Mistral 7B: Llama with a sliding window in all layers (arXiv:2310.06825); Ministral: in the layers it names."""

from __future__ import annotations

from lmworks.models.families.entries import Only
from lmworks.models.families.llama_like import SlidingLayers, decoder

_NO_BIAS = Only("attention_bias", (False,), "Mistral's projections have none")

MISTRAL = decoder(
    "mistral", "Mistral", _NO_BIAS, SlidingLayers(window=4096, typed=False),
)  # fmt: skip

MINISTRAL = decoder(
    "ministral", "Ministral", _NO_BIAS, SlidingLayers(window=4096),
)  # fmt: skip
