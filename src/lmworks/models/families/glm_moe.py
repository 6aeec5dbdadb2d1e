"""GLM-4.5: GLM's attention before DeepSeek-V3's experts (arXiv:2508.06471)."""

from __future__ import annotations

from lmworks.models.families.deepseek import V3_ROUTING, family
from lmworks.models.families.entries import Field, Rotary
from lmworks.models.families.llama_like import ATTENTION, HEAD_DIM, A, rms_norm
from lmworks.models.families.moe_like import M

GLM4_MOE = family(
    "glm4_moe", "Glm4Moe", *ATTENTION, HEAD_DIM, Field("attention_bias", f"{A}qkv_bias", False),
    Field("use_qk_norm", f"{A}qk_norm", False, {True: "per_head", False: "none"}.__getitem__, "per_head".__eq__),
    Rotary(partial=0.5), Field("n_group", f"{M}n_group", 1), Field("topk_group", f"{M}topk_group", 1), *V3_ROUTING,
    norm=rms_norm(1e-5),
)  # fmt: skip
