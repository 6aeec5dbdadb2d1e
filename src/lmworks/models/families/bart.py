"""BART (arXiv:1910.13461) and its kin: mBART, Marian, Pegasus, M2M-100, NLLB, and the Transformer of the first paper.

Marian is that Transformer (arXiv:1706.03762) with its sines before its cosines: `transformer-base`, `transformer-big`.
A bare `BartModel` is a language model too, for its head is its embedding.
"""

from __future__ import annotations

from lmworks.models.families.bart_like import LEARNED, bart_like

SINES_FIRST = {"kind": "sinusoidal", "interleaved": False}
BART = bart_like("bart", "Bart", positions=LEARNED, pre_norm=False, embed_norm=True, start=2, classifier=True)
MBART = bart_like("mbart", "MBart", positions=LEARNED, embed_norm=True, classifier=True)
MARIAN = bart_like("marian", "Marian", positions=SINES_FIRST, pre_norm=False, start=58100, pad=58100)
PEGASUS = bart_like("pegasus", "Pegasus", positions=SINES_FIRST, start=0, pad=0)
M2M_100 = bart_like(
    "m2m_100", "M2M100", activation="relu", scaled=True, start=2, bias=False,
    positions=lambda draft: {**SINES_FIRST, "offset": draft["pad_token_id"] + 1, "endpoint": True},
)  # fmt: skip
