"""ERNIE 4.5, dense: Llama whose neighboring coordinates turn together (Baidu, 2025)."""

from __future__ import annotations

from lmworks.models.families.entries import Field, Rotary
from lmworks.models.families.llama_like import TIED, A, M, decoder, generates_only, rms_norm

ERNIE4_5 = decoder(
    "ernie4_5", "Ernie4_5", TIED, Field("head_dim", f"{A}head_dim", 128),
    Field("use_bias", f"{A}qkv_bias {A}o_bias {M}bias", False), norm=rms_norm(1e-5),
    rotary=Rotary(5e5, interleaved=True), heads=generates_only("Ernie4_5"),
)  # fmt: skip
