"""Gemma 1, 2, 3 (text) and VaultGemma (arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786).

Embeddings times √hidden_size, norms stored less one, GeGLU, wide heads. From the second on: norms around both
branches, alternating windows, a chosen scale, soft caps (2) or norms of queries and keys and two rotary bases (3).
"""

from __future__ import annotations

from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Entry, Field, Only, Rotary, RotaryByLayerType
from lmworks.models.families.language_part import language_part
from lmworks.models.families.llama_like import (
    ATTENTION_BIAS,
    SANDWICH,
    TIED,
    A,
    M,
    SlidingLayers,
    decoder,
    decoder_rules,
    generates_only,
    preset,
)

_GELU = "gelu_pytorch_tanh"
_GEMMA: tuple[Entry, ...] = (
    TIED,
    Constant("embed.multiplier", lambda draft: draft["hidden_size"] ** 0.5),
    Constant("decoder.norm.unit_offset", True),
    Constant(f"{M}hidden_act", _GELU),
    # The first files say "gelu" and mean the approximation.
    Only("hidden_act", (_GELU, "gelu"), "Gemma's gate is the approximated GELU", _GELU),
    Only("hidden_activation", (_GELU,), "Gemma's gate is the approximated GELU", _GELU),
    Only("use_bidirectional_attention", (False,), "Gemma is read as a causal decoder"),
    Field("head_dim", f"{A}head_dim", 256),
    ATTENTION_BIAS,
)


_SCALE = Field(
    "query_pre_attn_scalar", f"{A}scale", 256, load=lambda size: size**-0.5, save=lambda scale: round(scale**-2)
)
_SCORE_CAP = Field("attn_logit_softcapping", f"{A}attn_logit_softcapping", 50.0, nullable=True)


def _logit_cap(default: float | None) -> tuple[Entry, ...]:
    return (
        Constant("head.kind", "causal_lm"),
        Field("final_logit_softcapping", "head.final_logit_softcapping", default, nullable=True),
    )


GEMMA = decoder(
    "gemma", "Gemma", *_GEMMA,
)  # fmt: skip

GEMMA2 = decoder(
    "gemma2", "Gemma2", *_GEMMA, _SCALE, _SCORE_CAP, *_logit_cap(30.0), Constant("decoder.placement", "sandwich"),
    SlidingLayers(window=4096, full_every=2), rules=decoder_rules(norms=SANDWICH),
)  # fmt: skip

VAULTGEMMA = decoder(
    "vaultgemma", "VaultGemma", *_GEMMA, _SCALE, _SCORE_CAP, *_logit_cap(30.0),
    SlidingLayers(window=4096, full_every=2),
    rules=decoder_rules(norms="input_layernorm post_attention_layernorm=pre_feedforward_layernorm"),
    heads=generates_only("VaultGemma"),
)  # fmt: skip


GEMMA3_TEXT = decoder(
    "gemma3_text", "Gemma3Text", *_GEMMA, _SCALE, *_logit_cap(None),
    Only("attn_logit_softcapping", (), "Gemma 3 does not cap scores"), Constant("decoder.placement", "sandwich"),
    Constant(f"{A}qk_norm", "per_head"), SlidingLayers(window=4096, full_every=6),
    rotary=RotaryByLayerType(Rotary(1e6), Rotary(1e4, ours="decoder.layers.S.positions"), "rope_local_base_freq"),
    rules=decoder_rules(norms=SANDWICH),
    heads={
        "Gemma3ForCausalLM": {"kind": "causal_lm"},
        **{k: v for k, v in decoder_heads("Gemma3Text").items() if k.endswith(("Model", "ForSequenceClassification"))},
    },
)  # fmt: skip

GEMMA3 = language_part(
    "gemma3", "Gemma3ForConditionalGeneration", GEMMA3_TEXT,
    **preset(262208, 2304, 9216, 26, 8, 4, 131072),
)  # fmt: skip
