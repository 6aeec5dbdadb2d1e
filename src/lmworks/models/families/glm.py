"""GLM-4 (arXiv:2406.12793): half of each head turns, in neighboring pairs; its 0414 models also norm both outputs."""

from __future__ import annotations

from lmworks.models.families.entries import Constant, Entry, Field, Rotary
from lmworks.models.families.llama_like import A, decoder, decoder_rules, rms_norm
from lmworks.models.families.phi3 import FUSED_GATE

_GLM: tuple[Entry, ...] = (
    Field("head_dim", f"{A}head_dim", 128),
    Field("num_key_value_heads", f"{A}num_key_value_heads", 2),
    Field("attention_bias", f"{A}qkv_bias", True),
)
_EPS = rms_norm(1.5625e-7)
_ROTARY = Rotary(partial=0.5, interleaved=True)
_OUTPUT_NORMS = (
    "input_layernorm post_attention_layernorm self_attn_output_layernorm=post_self_attn_layernorm "
    "mlp_output_layernorm=post_mlp_layernorm"
)

GLM = decoder(
    "glm", "Glm", *_GLM, norm=_EPS, rotary=_ROTARY, rules=decoder_rules(mlp=FUSED_GATE),
)  # fmt: skip

GLM4 = decoder(
    "glm4", "Glm4", *_GLM, Constant("decoder.placement", "sandwich"), norm=_EPS, rotary=_ROTARY,
    rules=decoder_rules(mlp=FUSED_GATE, norms=_OUTPUT_NORMS),
)  # fmt: skip
