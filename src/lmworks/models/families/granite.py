"""Granite 3 (IBM): Llama with four constant factors, after μP (arXiv:2203.03466)."""

from __future__ import annotations

from lmworks.models.families.entries import Constant, Field
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, A, decoder, generates_only, preset

FACTORS = (
    Field("embedding_multiplier", "embed.multiplier", 1.0),
    Field("residual_multiplier", "decoder.residual.multiplier", 1.0),
    Field("attention_multiplier", f"{A}scale", 1.0),
    Constant("head.kind", "causal_lm"),
    Field("logits_scaling", "head.logit_multiplier", 1.0, load=lambda s: 1 / s, save=lambda m: round(1 / m, 9)),
)
GRANITE = decoder(
    "granite", "Granite", ATTENTION_BIAS, MLP_BIAS, *FACTORS,
    heads=generates_only("Granite"),
    presets={
        "granite-3.3-2b": preset(
            49159, 2048, 8192, 40, 32, 8, 131072, rope_theta=1e7, rms_norm_eps=1e-5, tie_word_embeddings=True,
            embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.015625, logits_scaling=8.0,
        ),
        "granite-3.3-8b": preset(
            49159, 4096, 12800, 40, 32, 8, 131072, rope_theta=1e7, rms_norm_eps=1e-5, tie_word_embeddings=True,
            embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.0078125, logits_scaling=16.0,
        ),
    },
)  # fmt: skip
