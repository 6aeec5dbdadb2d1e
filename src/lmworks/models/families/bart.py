"""BART (arXiv:1910.13461) and its kin: mBART, Marian, Pegasus, M2M-100, NLLB, and the Transformer of the first paper.

Marian is that Transformer (arXiv:1706.03762) with its sines before its cosines: `transformer-base`, `transformer-big`.
A bare `BartModel` is a language model too, for its head is its embedding.
"""

from __future__ import annotations

from typing import Any

from lmworks.models.families.bart_like import LEARNED, bart_like
from lmworks.models.families.hf_config import HFConfig


def _preset(vocab_size: int, d_model: int, layers: int, ffn_dim: int, heads: int, **more: Any) -> HFConfig:
    stacks = {
        f"{stack}_{key}": value
        for stack in ("encoder", "decoder")
        for key, value in {"layers": layers, "ffn_dim": ffn_dim, "attention_heads": heads}.items()
    }
    return {"vocab_size": vocab_size, "d_model": d_model, "bos_token_id": 0, "eos_token_id": 2, **stacks, **more}


SINES_FIRST = {"kind": "sinusoidal", "interleaved": False}
BART = bart_like(
    "bart", "Bart",
    {
        "bart-base": _preset(50265, 768, 6, 3072, 12),
        "bart-large": _preset(50265, 1024, 12, 4096, 16),
        "bart-large-cnn": _preset(50264, 1024, 12, 4096, 16),
        "bart-large-mnli": _preset(
            50265, 1024, 12, 4096, 16, architectures=["BartForSequenceClassification"],
            id2label={"0": "contradiction", "1": "neutral", "2": "entailment"},
        ),
    },
    positions=LEARNED, pre_norm=False, embed_norm=True, start=2, classifier=True,
)  # fmt: skip
_MULTILINGUAL = {"scale_embedding": True, "activation_function": "relu"}
MBART = bart_like(
    "mbart", "MBart",
    {
        "mbart-large-cc25": _preset(250027, 1024, 12, 4096, 16, scale_embedding=True),
        "mbart-large-50": _preset(250054, 1024, 12, 4096, 16, decoder_start_token_id=2, **_MULTILINGUAL),
    },
    positions=LEARNED, embed_norm=True, classifier=True,
)  # fmt: skip


def _marian(vocab_size: int, d_model: int, ffn_dim: int, heads: int, activation: str, **more: Any) -> HFConfig:
    end = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": vocab_size - 1}
    return _preset(
        vocab_size, d_model, 6, ffn_dim, heads, max_position_embeddings=512, scale_embedding=True,
        activation_function=activation, decoder_start_token_id=vocab_size - 1, **end, **more,
    )  # fmt: skip


MARIAN = bart_like(
    "marian", "Marian",
    {
        "opus-mt-en-de": _marian(58101, 512, 2048, 8, "swish"),
        "transformer-base": _marian(37000, 512, 2048, 8, "relu"),
        "transformer-big": _marian(37000, 1024, 4096, 16, "relu", dropout=0.3),
    },
    positions=SINES_FIRST, pre_norm=False, start=58100, pad=58100,
)  # fmt: skip
PEGASUS = bart_like(
    "pegasus", "Pegasus",
    {
        "pegasus-large": _preset(
            96103, 1024, 16, 4096, 16, bos_token_id=None, eos_token_id=1, scale_embedding=True,
            activation_function="relu",
        ),
    },
    positions=SINES_FIRST, start=0, pad=0,
)  # fmt: skip
M2M_100 = bart_like(
    "m2m_100", "M2M100",
    {
        "m2m100_418M": _preset(128112, 1024, 12, 4096, 16),
        "m2m100_1.2B": _preset(128112, 1024, 24, 8192, 16),
        "nllb-200-distilled-600M": _preset(256206, 1024, 12, 4096, 16),
        "nllb-200-3.3B": _preset(256206, 2048, 24, 8192, 16),
    },
    positions=lambda draft: {**SINES_FIRST, "offset": draft["pad_token_id"] + 1, "endpoint": True},
    activation="relu", scaled=True, start=2, bias=False,
)  # fmt: skip
