"""OLMo 1, 2, 3 (arXiv:2402.00838, arXiv:2501.00656): norms without weights, then norms on the branches' outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Entry, Only, Rotary, RotaryByLayerType
from lmworks.models.families.llama_like import (
    ATTENTION_BIAS,
    REORDERED,
    A,
    SlidingLayers,
    decoder,
    decoder_rules,
    rms_norm,
)


def _heads(stem: str) -> dict[str, Mapping[str, Any]]:
    return {k: v for k, v in decoder_heads(stem).items() if not k.endswith("ForTokenClassification")}


_REORDERED: tuple[Entry, ...] = (
    ATTENTION_BIAS,
    Constant("decoder.placement", "reordered"),
    Constant(f"{A}qk_norm", "full"),
)

OLMO = decoder(
    "olmo", "Olmo", ATTENTION_BIAS, Only("clip_qkv", (), "queries, keys and values are not clipped here"),
    norm=(Constant("decoder.norm", {"kind": "layer", "affine": False, "eps": 1e-5}),), heads=_heads("Olmo"),
)  # fmt: skip

OLMO2 = decoder(
    "olmo2", "Olmo2", *_REORDERED, norm=rms_norm(1e-5), rules=decoder_rules(norms=REORDERED), heads=_heads("Olmo2"),
)  # fmt: skip

OLMO3 = decoder(
    "olmo3", "Olmo3", *_REORDERED, SlidingLayers(window=4096, full_every=4), norm=rms_norm(1e-5),
    rotary=RotaryByLayerType(Rotary(5e5), Rotary(5e5, ours="decoder.layers.S.positions"), "rope_theta"),
    rules=decoder_rules(norms=REORDERED), heads=_heads("Olmo3"),
)  # fmt: skip
