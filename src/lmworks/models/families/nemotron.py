"""Nemotron-4 (arXiv:2402.16819): LayerNorm stored less one, squared ReLU without a gate, half of each head turns."""

from __future__ import annotations

from lmworks.models.families.entries import ActivationField, Constant, Rotary
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, M, decoder, layer_norm, preset

NEMOTRON = decoder(
    "nemotron", "Nemotron", ATTENTION_BIAS, MLP_BIAS, Constant(f"{M}gated", False),
    ActivationField("hidden_act", f"{M}hidden_act", "relu2"),
    norm=(*layer_norm("norm_eps"), Constant("decoder.norm.unit_offset", True)), rotary=Rotary(partial=0.5),
    presets={
        "minitron-4b": preset(256000, 3072, 9216, 32, 24, 8, 4096, head_dim=128),
        "minitron-8b": preset(256000, 4096, 16384, 32, 48, 8, 4096, head_dim=128),
    },
)  # fmt: skip
