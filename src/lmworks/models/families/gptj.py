"""GPT-J (EleutherAI, 2021): attention and MLP side by side behind one norm, neighboring coordinates turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.models.families.entries import Constant, Draft, Implied, Only, Written, get, put
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, heads, modules, sizes
from lmworks.models.families.hf_config import Fields

RULES = (
    *modules("embed_tokens=wte decoder.norm=ln_f", "transformer.", ours=""),
    *modules("lm_head=lm_head head.score=score", ours=""),
    *modules(
        "self_attn.q_proj=attn.q_proj self_attn.k_proj=attn.k_proj self_attn.v_proj=attn.v_proj "
        "self_attn.o_proj=attn.out_proj mlp.up_proj=mlp.fc_in mlp.down_proj=mlp.fc_out input_layernorm=ln_1",
        "transformer.h.{i}.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class RotaryDim:
    """How many coordinates of a head turn."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        share = fields.count("rotary_dim") / get(draft, f"{A}head_dim")
        put(draft, "positions", {"kind": "rope", "interleaved": True, "partial_rotary_factor": share})

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["rotary_dim"] = round(get(draft, "positions.partial_rotary_factor") * get(draft, f"{A}head_dim"))


GPTJ = Family(
    name="gptj",
    architectures=heads("GPTJ", bias=True),
    entries=(
        *sizes(
            hidden="n_embd", layers="n_layer", heads="n_head", context="n_positions", inner="n_inner",
            act=("activation_function", "gelu_new"), tied=False,
        ),
        RotaryDim(),
        Constant("decoder.placement", "parallel_shared"),
        Only("scale_attn_weights", (True,), "scores are always divided by the square root of the head size"),
        Implied(("rotary", "gradient_checkpointing")),
        Written({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    ),
    weight_rules=RULES,
    prefix="transformer.",
    ignored_tensors=(r"h\.\d+\.attn\.(masked_)?bias",),
)  # fmt: skip
