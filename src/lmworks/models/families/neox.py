"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373): parallel blocks, a quarter of a head turns."""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import Field, Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.gpt_like import A, fused, heads, modules, sizes
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.hub.rules import Rule, rename

_LAYER = "gpt_neox.layers.{i}."


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    newer = rename("lm_head.weight", "lm_head.weight")
    return (
        *modules("embed_tokens=embed_in decoder.norm=final_layer_norm", "gpt_neox.", ours=""),
        Rule(("lm_head.weight",), ("embed_out.weight",), also=(newer,)),
        *modules("head.score=score", ours=""),
        *fused(config, f"{_LAYER}attention.query_key_value"),
        *modules(
            "self_attn.o_proj=attention.dense mlp.up_proj=mlp.dense_h_to_4h mlp.down_proj=mlp.dense_4h_to_h "
            "input_layernorm=input_layernorm post_attention_layernorm=post_attention_layernorm", _LAYER,
        ),
    )  # fmt: skip


def _preset(hidden: int, layers: int, attention_heads: int, *, vocab: int = 50304, act: str = "gelu") -> HFConfig:
    return {
        "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden,
        "num_attention_heads": attention_heads, "max_position_embeddings": 2048, "hidden_act": act,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


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
    hf_presets={
        "pythia-70m": _preset(512, 6, 8),
        "pythia-160m": _preset(768, 12, 12),
        "pythia-410m": _preset(1024, 24, 16),
        "pythia-1b": _preset(2048, 16, 8),
        "pythia-1.4b": _preset(2048, 24, 16),
        "pythia-2.8b": _preset(2560, 32, 32),
        "pythia-6.9b": _preset(4096, 32, 32, vocab=50432),
        "pythia-12b": _preset(5120, 36, 40, vocab=50688),
        "gpt-neox-20b": _preset(6144, 44, 64, vocab=50432, act="gelu_fast"),
    },
)  # fmt: skip
