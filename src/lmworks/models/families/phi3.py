"""Phi-3 and Phi-4 (arXiv:2404.14219): fused projections, part of each head turning, LongRoPE for long contexts."""

from __future__ import annotations

from lmworks.models.families.entries import Only, Rotary
from lmworks.models.families.llama_like import SlidingLayers, decoder, decoder_rules, rms_norm

FUSED_ATTENTION = "q_proj+k_proj+v_proj=qkv_proj o_proj"
FUSED_GATE = "gate_proj+up_proj=gate_up_proj down_proj"

PHI3 = decoder(
    "phi3", "Phi3", *(Only(key, (False,), "Phi-3 has none") for key in ("attention_bias", "mlp_bias", "lm_head_bias")),
    SlidingLayers(typed=False), norm=rms_norm(1e-5), rotary=Rotary(partial=1.0, original=4096),
    rules=decoder_rules(attention=FUSED_ATTENTION, mlp=FUSED_GATE),
)  # fmt: skip
