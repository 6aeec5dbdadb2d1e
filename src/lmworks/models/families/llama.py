"""LLaMA: pre-norm RMSNorm, rotary positions, gated SiLU (Touvron et al., 2023, arXiv:2302.13971; arXiv:2407.21783).

With it three that differ in a value or two: Arcee, Seed-OSS and Helium. Also the project's own ladder of sizes.
"""

from __future__ import annotations

from typing import Any

from lmworks.models.families.entries import Constant, Field, Rotary
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.families.llama_like import ATTENTION_BIAS, MLP_BIAS, A, M, decoder, llama3_scaling, preset, rms_norm


def _llama3(vocab_size: int, *sizes: int, factor: float | None = None, **further: Any) -> HFConfig:
    scaling = None if factor is None else llama3_scaling(factor)
    return preset(vocab_size, *sizes, rope_theta=5e5, rope_scaling=scaling, rms_norm_eps=1e-5, **further)


LLAMA = decoder(
    "llama", "Llama", ATTENTION_BIAS, MLP_BIAS,
    presets={
        "llama-7b": preset(32000, 4096, 11008, 32, 32, 32, 2048),
        "llama-13b": preset(32000, 5120, 13824, 40, 40, 40, 2048),
        "llama-65b": preset(32000, 8192, 22016, 80, 64, 64, 2048, rms_norm_eps=1e-5),
        "llama-2-7b": preset(32000, 4096, 11008, 32, 32, 32, 4096, rms_norm_eps=1e-5),
        "llama-2-13b": preset(32000, 5120, 13824, 40, 40, 40, 4096, rms_norm_eps=1e-5),
        "llama-2-70b": preset(32000, 8192, 28672, 80, 64, 8, 4096, rms_norm_eps=1e-5),
        "llama-3-8b": _llama3(128256, 4096, 14336, 32, 32, 8, 8192),
        "llama-3-70b": _llama3(128256, 8192, 28672, 80, 64, 8, 8192),
        "llama-3.1-8b": _llama3(128256, 4096, 14336, 32, 32, 8, 131072, factor=8.0),
        "llama-3.1-70b": _llama3(128256, 8192, 28672, 80, 64, 8, 131072, factor=8.0),
        "llama-3.1-405b": _llama3(128256, 16384, 53248, 126, 128, 8, 131072, factor=8.0),
        "llama-3.2-1b": _llama3(
            128256, 2048, 8192, 16, 32, 8, 131072, factor=32.0, head_dim=64, tie_word_embeddings=True
        ),
        "llama-3.2-3b": _llama3(
            128256, 3072, 8192, 28, 24, 8, 131072, factor=32.0, head_dim=128, tie_word_embeddings=True
        ),
        "smollm2-135m": preset(
            49152, 576, 1536, 30, 9, 3, 8192, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True
        ),
        "smollm2-360m": preset(
            49152, 960, 2560, 32, 15, 5, 8192, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True
        ),
        "smollm2-1.7b": preset(
            49152, 2048, 8192, 24, 32, 32, 8192, rope_theta=1.3e5, rms_norm_eps=1e-5, tie_word_embeddings=True
        ),
        # Not published: sound shapes for planning and training from scratch, named by their parameters.
        "llama-300m": _llama3(32000, 1024, 2816, 24, 16, 4, 4096, head_dim=64, tie_word_embeddings=True),
        "llama-1b": _llama3(49152, 2048, 5632, 20, 16, 4, 8192, head_dim=128, tie_word_embeddings=True),
        "llama-10b": _llama3(128256, 4096, 14336, 40, 32, 8, 8192, head_dim=128),
        "llama-100b": _llama3(128256, 10240, 28672, 88, 80, 8, 8192, head_dim=128),
    },
)  # fmt: skip

ARCEE = decoder(
    "arcee", "Arcee", Field("hidden_act", f"{M}hidden_act", "relu2"), Constant(f"{M}gated", False),
    ATTENTION_BIAS, MLP_BIAS, norm=rms_norm(1e-5),
    presets={
        "afm-4.5b": preset(
            128004, 2560, 18432, 36, 20, 4, 65536, head_dim=128, rope_theta=1e4, rms_norm_eps=1e-5,
            rope_scaling={
                "rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
                "beta_fast": 32.0, "beta_slow": 1.0,
            },
        )
    },
)  # fmt: skip
"""Squared ReLU, no gate."""

SEED_OSS = decoder(
    "seed_oss", "SeedOss", Field("head_dim", f"{A}head_dim", 128), Field("attention_bias", f"{A}qkv_bias", True),
    Field("attention_out_bias", f"{A}o_bias", False), MLP_BIAS,
    presets={"seed-oss-36b": preset(155136, 5120, 27648, 64, 80, 8, 524288, rope_theta=1e7)},
)  # fmt: skip
"""Biases of queries, keys and values."""

HELIUM = decoder(
    "helium", "Helium", Field("head_dim", f"{A}head_dim", 128), Field("attention_bias", f"{A}qkv_bias", False),
    MLP_BIAS, norm=rms_norm(1e-8), rotary=Rotary(theta=1e5, interleaved=True),
    presets={"helium-1-2b": preset(64000, 2048, 8192, 28, 16, 8, 4096, rope_theta=2e4)},
)  # fmt: skip
"""Neighboring coordinates turn together (arXiv:2410.00037)."""
