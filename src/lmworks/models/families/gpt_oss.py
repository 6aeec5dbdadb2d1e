"""gpt-oss (OpenAI, 2025, arXiv:2508.10925): attention sinks, every other layer a window, clamped experts with biases.

The published files hold MXFP4 experts, which are refused; read and written is the floating-point form.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import Constant, Count, Field, Implied, Only, Rotary, Written
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.families.llama_like import ATTENTION, COMMON, A, SlidingLayers, decoder_rules, preset, rms_norm
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


def _preset(layers: int, experts: int) -> HFConfig:
    yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096}  # fmt: skip
    return preset(
        201088, 2880, 2880, layers, 64, 8, 131072, head_dim=64, num_local_experts=experts, num_experts_per_tok=4,
        attention_bias=True, sliding_window=128, rope_theta=150000.0, rope_scaling=yarn, swiglu_limit=7.0,
        router_aux_loss_coef=0.9, eos_token_id=200002,
    )  # fmt: skip


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
    hf_presets={"gpt-oss-20b": _preset(24, 32), "gpt-oss-120b": _preset(36, 128)},
)  # fmt: skip
