"""GPT-BigCode, GPT-2 with one key and value: SantaCoder (arXiv:2301.03988), StarCoder (arXiv:2305.06161)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import Constant, Draft, Implied, Only, Written, get, put
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, fused, heads, modules, sizes
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule

_BLOCK = "transformer.h.{i}."


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    return (
        *modules("embed_tokens=wte decoder.embed_positions=wpe decoder.norm=ln_f", "transformer.", ours=""),
        *modules("lm_head=lm_head head.score=score", ours=""),
        *fused(config, f"{_BLOCK}attn.c_attn"),
        *modules(
            "self_attn.o_proj=attn.c_proj mlp.up_proj=mlp.c_fc mlp.down_proj=mlp.c_proj input_layernorm=ln_1 "
            "post_attention_layernorm=ln_2", _BLOCK,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class MultiQuery:
    """Whether all heads share one key and value, or each has its own."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        if fields.take("multi_query", True):
            put(draft, f"{A}num_key_value_heads", 1)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        hf["multi_query"] = get(draft, f"{A}num_key_value_heads") == 1


GPT_BIGCODE = Family(
    name="gpt_bigcode",
    architectures=heads("GPTBigCode"),
    entries=(
        *sizes(
            hidden="n_embd", layers="n_layer", heads="n_head", context="n_positions", inner="n_inner",
            act=("activation_function", "gelu_pytorch_tanh"),
        ),
        MultiQuery(),
        Constant(f"{A}qkv_bias", True),
        Constant(f"{A}o_bias", True),
        Constant("positions", {"kind": "learned"}),
        Only("scale_attn_weights", (True,), "scores are always divided by the square root of the head size"),
        Only("add_cross_attention", (False,), "there is no encoder"),
        Written({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        Implied(("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner",
                 "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache",
                 "validate_runner_input", "num_key_value_heads")),
    ),
    weight_rules=_rules,
    prefix="transformer.",
    ignored_tensors=(r"h\.\d+\.attn\.(masked_)?bias",),
)  # fmt: skip
