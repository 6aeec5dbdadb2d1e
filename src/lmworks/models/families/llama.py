"""LLaMA: pre-norm RMSNorm, rotary positions, gated SiLU (Touvron et al., 2023, arXiv:2302.13971; arXiv:2407.21783).

With it three that differ in a value or two: Arcee, Seed-OSS and Helium. Also the project's own ladder of sizes.
"""

from __future__ import annotations

from lmworks.models.families.entries import Constant, Field, Rotary
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, A, M, decoder, rms_norm

LLAMA = decoder(
    "llama", "Llama", ATTENTION_BIAS, MLP_BIAS,
)  # fmt: skip

ARCEE = decoder(
    "arcee", "Arcee", Field("hidden_act", f"{M}hidden_act", "relu2"), Constant(f"{M}gated", False),
    ATTENTION_BIAS, MLP_BIAS, norm=rms_norm(1e-5),
)  # fmt: skip
"""Squared ReLU, no gate."""

SEED_OSS = decoder(
    "seed_oss", "SeedOss", Field("head_dim", f"{A}head_dim", 128), Field("attention_bias", f"{A}qkv_bias", True),
    Field("attention_out_bias", f"{A}o_bias", False), MLP_BIAS,
)  # fmt: skip
"""Biases of queries, keys and values."""

HELIUM = decoder(
    "helium", "Helium", Field("head_dim", f"{A}head_dim", 128), Field("attention_bias", f"{A}qkv_bias", False),
    MLP_BIAS, norm=rms_norm(1e-8), rotary=Rotary(theta=1e5, interleaved=True),
)  # fmt: skip
"""Neighboring coordinates turn together (arXiv:2410.00037)."""
