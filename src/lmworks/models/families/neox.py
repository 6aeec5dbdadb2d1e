"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373): parallel blocks, a quarter of a head turns."""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import Field, Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, fused, heads, megatron_layer, modules, sizes
from lmworks.models.hub.rules import Rule, rename

_LAYER = "gpt_neox.layers.{i}."


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    newer = rename("lm_head.weight", "lm_head.weight")
    return (
        *modules("embed_tokens=embed_in decoder.norm=final_layer_norm", "gpt_neox.", ours=""),
        Rule(("lm_head.weight",), ("embed_out.weight",), also=(newer,)),
        *modules("head.score=score", ours=""),
        *fused(config, f"{_LAYER}attention.query_key_value"),
        *megatron_layer(_LAYER, "attention"),
    )  # fmt: skip


GPT_NEOX = Family(
    name="gpt_neox",
    architectures=heads("GPTNeoX"),
    entries=(
        *sizes(inner="intermediate_size", eps="layer_norm_eps", act=("hidden_act", "gelu"), tied=False),
        Field("attention_bias", f"{A}qkv_bias {A}o_bias", True),
        Field(
            "use_parallel_residual", "decoder.placement", True, {True: "parallel", False: "pre"}.__getitem__,
            "parallel".__eq__,
        ),
        Rotary(partial=0.25),
        Written({"attention_dropout": 0.0, "hidden_dropout": 0.0, "classifier_dropout": 0.0}),
    ),
    weight_rules=_rules,
    spellings={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
    prefix="gpt_neox.",
    tied=("embed_out.weight", "lm_head.weight"),
    ignored_tensors=(r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",),
)  # fmt: skip
