"""StarCoder 2 (arXiv:2402.19173): LayerNorm, plain GELU MLP, biases throughout, a window in all layers."""

from __future__ import annotations

from lmworks.models.families.entries import ActivationField, Constant, Field
from lmworks.models.families.llama_like import TIED, A, M, SlidingLayers, decoder, decoder_rules, layer_norm

STARCODER2 = decoder(
    "starcoder2", "Starcoder2", TIED, Field("use_bias", f"{A}qkv_bias {A}o_bias {M}bias", True),
    Constant(f"{M}gated", False), ActivationField("hidden_act", f"{M}hidden_act", "gelu_pytorch_tanh"),
    SlidingLayers(typed=False), norm=layer_norm("norm_epsilon"),
    rules=decoder_rules(mlp="up_proj=c_fc down_proj=c_proj"),
)  # fmt: skip
