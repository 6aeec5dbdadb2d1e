"""EXAONE 4 (arXiv:2507.11407): norms on outputs and of queries and keys; layers that see all have no positions."""

from __future__ import annotations

from lmworks.models.families.entries import Constant
from lmworks.models.families.llama_like import (
    REORDERED,
    A,
    SlidingLayers,
    decoder,
    decoder_rules,
    llama3_scaling,
    preset,
    rms_norm,
)

EXAONE4 = decoder(
    "exaone4", "Exaone4", Constant("decoder.placement", "reordered"), Constant(f"{A}qk_norm", "per_head"),
    Constant("decoder.layers.F.positions", {"kind": "none"}), SlidingLayers(full_every=4),
    norm=rms_norm(1e-5), rules=decoder_rules(norms=REORDERED),
    presets={
        "exaone-4.0-1.2b": preset(
            102400, 2048, 4096, 30, 32, 8, 65536, rope_theta=1e6, rope_scaling=llama3_scaling(16.0), head_dim=64,
            tie_word_embeddings=True, sliding_window=None,
        ),
        "exaone-4.0-32b": preset(
            102400, 5120, 27392, 64, 40, 8, 131072, rope_theta=1e6, rope_scaling=llama3_scaling(16.0), head_dim=128,
            sliding_window=4096,
        ),
    },
)  # fmt: skip
