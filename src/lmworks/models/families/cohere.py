"""Command R and Command R7B (Cohere): both branches after one bias-free LayerNorm, neighboring pairs turn.

The second lets three layers of four see a window and gives the fourth no positions (arXiv:2501.18795).
"""

from __future__ import annotations

from typing import Any

from lmworks.models.families.entries import Constant, Entry, Field, Only, Rotary
from lmworks.models.families.llama_like import (
    ATTENTION_BIAS,
    TIED,
    SlidingLayers,
    decoder,
    decoder_rules,
    generates_only,
    layer_norm,
)

_COHERE: tuple[Entry, ...] = (
    TIED,
    ATTENTION_BIAS,
    Constant("decoder.placement", "parallel_shared"),
    Constant("head.kind", "causal_lm"),
    Field("logit_scale", "head.logit_multiplier", 0.0625),
    Only("use_qk_norm", (False,), "the norm of queries and keys that differs by head is not built"),
)
_SAID: dict[str, Any] = {
    "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj", "rotary_pct": 1.0,
    "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
}  # fmt: skip
"""What files of the second say beside the keys that are read."""
_RULES = decoder_rules(norms="input_layernorm")

COHERE = decoder(
    "cohere", "Cohere", *_COHERE, norm=layer_norm(bias=False), rotary=Rotary(5e5, interleaved=True), rules=_RULES,
    heads=generates_only("Cohere"),
)  # fmt: skip

COHERE2 = decoder(
    "cohere2", "Cohere2", *_COHERE, *(Only(k, (v,), f"it is {v} here") for k, v in _SAID.items()),
    Constant("decoder.layers.F.positions", {"kind": "none"}),
    SlidingLayers(window=4096, full_every=4, required=True), norm=layer_norm(bias=False),
    rotary=Rotary(interleaved=True), rules=_RULES, heads=generates_only("Cohere2"),
)  # fmt: skip
