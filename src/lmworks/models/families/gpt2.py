"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, plain GELU MLP, tied head.

On disk its linear maps are `Conv1D`, that is [in, out], and queries, keys and values are one fused matrix.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Only, Written
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import OURS, A, modules, sizes
from lmworks.models.hub.rules import Rule, Split, Transpose, rename, with_bias

_QKV = tuple(f"{OURS}self_attn.{p}_proj" for p in "qkv")
_BLOCK = "transformer.h.{i}."
RULES = (
    rename("embed_tokens.weight", "transformer.wte.weight"),
    rename("decoder.embed_positions.weight", "transformer.wpe.weight"),
    Rule(tuple(f"{n}.weight" for n in _QKV), (f"{_BLOCK}attn.c_attn.weight",), (Transpose(), Split())),
    Rule(tuple(f"{n}.bias" for n in _QKV), (f"{_BLOCK}attn.c_attn.bias",), (Split(),)),
    *with_bias(f"{OURS}self_attn.o_proj", f"{_BLOCK}attn.c_proj", Transpose()),
    *with_bias(f"{OURS}mlp.up_proj", f"{_BLOCK}mlp.c_fc", Transpose()),
    *with_bias(f"{OURS}mlp.down_proj", f"{_BLOCK}mlp.c_proj", Transpose()),
    *modules("input_layernorm=ln_1 post_attention_layernorm=ln_2", _BLOCK),
    *with_bias("decoder.norm", "transformer.ln_f"),
    rename("lm_head.weight", "lm_head.weight"),
)


def weight_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """All tensors; the matrix of labels has one name for documents and another for tokens."""
    return (*RULES, *with_bias("head.score", "classifier" if config.head.kind == "token_classification" else "score"))


GPT2 = Family(
    name="gpt2",
    architectures=decoder_heads("GPT2", "LMHeadModel"),
    entries=(
        *sizes(hidden="n_embd", layers="n_layer", heads="n_head", context="n_positions", inner="n_inner",
               act=("activation_function", "gelu_new")),
        Constant("positions", {"kind": "learned"}),
        Constant(f"{A}qkv_bias", True),
        Constant(f"{A}o_bias", True),
        Only("scale_attn_weights", (True,), "scores are always divided by the square root of the head size"),
        Only("scale_attn_by_inverse_layer_idx", (False,), "scores do not depend on the layer"),
        Only("add_cross_attention", (False,), "there is no encoder"),
        Written({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    ),
    weight_rules=weight_rules,
    prefix="transformer.",
    ignored_tensors=(r"h\.\d+\.attn\.(masked_)?bias",),
)  # fmt: skip
