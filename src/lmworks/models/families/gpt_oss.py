"""gpt-oss (OpenAI, 2025, arXiv:2508.10925): attention sinks, every other layer a window, clamped experts with biases.

The published files hold MXFP4 experts, which are refused; read and written is the floating-point form.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Count, Field, Implied, Only, Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.llama_like import ATTENTION, COMMON, A, SlidingLayers, decoder_rules, rms_norm
from lmworks.models.families.moe_like import OURS, M, expert_entries
from lmworks.models.hub.rules import Rule, Split, Transpose, rename, with_bias
from lmworks.models.slots import MoEConfig

_MLP = "model.layers.{i}.mlp"
_PAIR = (f"{OURS}.experts.gate_proj", f"{OURS}.experts.up_proj")


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    assert config.decoder is not None, "gpt-oss is a decoder"
    assert isinstance(config.decoder.mlp, MoEConfig), "every layer has experts"
    alternating = Split(dim=1, groups=config.decoder.mlp.moe_intermediate_size)
    biases = tuple(f"{name}_bias" for name in _PAIR)
    return (
        *decoder_rules(mlp=""),
        rename("decoder.layers.{i}.self_attn.sinks", "model.layers.{i}.self_attn.sinks"),
        *with_bias(f"{OURS}.router", f"{_MLP}.router"),
        Rule(_PAIR, (f"{_MLP}.experts.gate_up_proj",), (Transpose(), alternating)),
        Rule(biases, (f"{_MLP}.experts.gate_up_proj_bias",), (alternating,)),
        rename(f"{OURS}.experts.down_proj", f"{_MLP}.experts.down_proj", Transpose()),
        rename(f"{OURS}.experts.down_proj_bias", f"{_MLP}.experts.down_proj_bias"),
    )


GPT_OSS = Family(
    name="gpt_oss",
    architectures=decoder_heads("GptOss"),
    entries=(
        *COMMON, *ATTENTION, Count("head_dim", f"{A}head_dim", 64), Constant(f"{A}sinks", True),
        Field("attention_bias", f"{A}qkv_bias {A}o_bias", True),
        *expert_entries("num_local_experts", "intermediate_size"), Constant(f"{M}hidden_act", "quick_gelu"),
        Constant(f"{M}bias", True), Constant(f"{M}router_bias", True),
        Field("swiglu_limit", f"{M}swiglu_limit", 7.0),
        Only("swiglu_alpha", (1.702,), "the gate's sigmoid is steepened by 1.702", written=1.702),
        *rms_norm(1e-5), Rotary(150_000.0), SlidingLayers(window=128, full_every=2),
        Implied(("initial_context_length",)), Written({"output_router_logits": False, "hidden_act": "silu"}),
    ),
    weight_rules=_rules,
    spellings={"experts_per_token": "num_experts_per_tok"},
    prefix="model.",
)  # fmt: skip
