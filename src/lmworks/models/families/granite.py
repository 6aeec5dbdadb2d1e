"""Granite 3 (IBM): Llama with four constant factors, after μP (arXiv:2203.03466)."""

from __future__ import annotations

from lmworks.models.families.entries import Constant, Field
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, A, decoder, generates_only

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
)  # fmt: skip
