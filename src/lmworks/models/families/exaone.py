"""EXAONE 4 (arXiv:2507.11407): norms on outputs and of queries and keys; layers that see all have no positions."""

from __future__ import annotations

from lmworks.models.families.entries import Constant
from lmworks.models.families.llama_like import (
    REORDERED,
    A,
    SlidingLayers,
    decoder,
    decoder_rules,
    rms_norm,
)

EXAONE4 = decoder(
    "exaone4", "Exaone4", Constant("decoder.placement", "reordered"), Constant(f"{A}qk_norm", "per_head"),
    Constant("decoder.layers.F.positions", {"kind": "none"}), SlidingLayers(full_every=4),
    norm=rms_norm(1e-5), rules=decoder_rules(norms=REORDERED),
)  # fmt: skip
