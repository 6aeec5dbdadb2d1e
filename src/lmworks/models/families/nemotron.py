"""Nemotron-4 (arXiv:2402.16819): LayerNorm stored less one, squared ReLU without a gate, half of each head turns."""

from __future__ import annotations

from lmworks.models.families.entries import ActivationField, Constant, Rotary
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, M, decoder, layer_norm

NEMOTRON = decoder(
    "nemotron", "Nemotron", ATTENTION_BIAS, MLP_BIAS, Constant(f"{M}gated", False),
    ActivationField("hidden_act", f"{M}hidden_act", "relu2"),
    norm=(*layer_norm("norm_eps"), Constant("decoder.norm.unit_offset", True)), rotary=Rotary(partial=0.5),
)  # fmt: skip
