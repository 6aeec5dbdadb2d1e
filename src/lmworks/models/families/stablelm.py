"""StableLM 2 (arXiv:2402.17834): LayerNorm, a quarter of each head turns, branches one after or beside the other."""

from __future__ import annotations

from lmworks.models.families.entries import Field, Only, Rotary
from lmworks.models.families.llama_like import A, decoder, layer_norm

STABLELM = decoder(
    "stablelm", "StableLm", Field("use_qkv_bias", f"{A}qkv_bias", False),
    Field(
        "use_parallel_residual", "decoder.placement", False,
        load=lambda parallel: "parallel_shared" if parallel else "pre",
        save=lambda placement: {"parallel_shared": True, "pre": False}[placement],
    ),
    Only("qk_layernorm", (False,), "the norm of queries and keys that differs by head is not built"),
    norm=layer_norm(), rotary=Rotary(partial=0.25),
)  # fmt: skip
