"""Phi-1, Phi-1.5 and Phi-2 (arXiv:2309.05463): attention and plain MLP side by side after one LayerNorm."""

from __future__ import annotations

from lmworks.models.families.entries import ActivationField, Constant, Only, Rotary
from lmworks.models.families.llama_like import A, M, decoder, decoder_rules, layer_norm

PHI = decoder(
    "phi", "Phi", Constant("decoder.placement", "parallel_shared"),
    *(Constant(path, True) for path in (f"{A}qkv_bias", f"{A}o_bias", f"{M}bias", "head.bias")),
    Constant("head.kind", "causal_lm"), Constant(f"{M}gated", False),
    ActivationField("hidden_act", f"{M}hidden_act", "gelu_new"),
    Only("qk_layernorm", (False,), "queries and keys have no LayerNorm here"),
    norm=layer_norm(), rotary=Rotary(partial=0.5),
    rules=decoder_rules(
        attention="q_proj k_proj v_proj o_proj=dense", mlp="up_proj=fc1 down_proj=fc2", norms="input_layernorm",
        norm="final_layernorm",
    ),
)  # fmt: skip
