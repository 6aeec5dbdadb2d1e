"""LLaMA and the families that differ from it in a few values: Mistral, Qwen2, Qwen3.

Pre-norm RMSNorm, rotary positions, gated SiLU MLP (Touvron et al., 2023, arXiv:2302.13971; Llama 3,
arXiv:2407.21783; Mistral 7B, arXiv:2310.06825; Qwen2, arXiv:2407.10671; Qwen3, arXiv:2505.09388).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig, RotaryPositions
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import Fields, HFConfig, one_or_list, token_ids
from lmworks.models.hub.rules import rename, with_bias

WEIGHT_RULES = (
    rename("embed_tokens.weight", "model.embed_tokens.weight"),
    *(
        rule
        for module in ("q_proj", "k_proj", "v_proj", "o_proj")
        for rule in with_bias(f"decoder.layers.{{i}}.self_attn.{module}", f"model.layers.{{i}}.self_attn.{module}")
    ),
    *(
        rule
        for module in ("gate_proj", "up_proj", "down_proj")
        for rule in with_bias(f"decoder.layers.{{i}}.mlp.{module}", f"model.layers.{{i}}.mlp.{module}")
    ),
    *(
        rename(f"decoder.layers.{{i}}.{module}.weight", f"model.layers.{{i}}.{module}.weight")
        for module in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    ),
    rename("decoder.norm.weight", "model.norm.weight"),
    rename("lm_head.weight", "lm_head.weight"),
)


@dataclass(frozen=True)
class Variant:
    """Where a relative of LLaMA differs from it."""

    model_type: str
    architecture: str
    qkv_bias: bool | None = None
    """None: `attention_bias` says so, for all four projections."""
    qk_norm: bool = False
    head_dim: int | None = None
    """None: `hidden_size / num_attention_heads` unless the file says otherwise."""


def config_from_hf(hf: HFConfig, variant: Variant) -> ModelConfig:
    """Read a `config.json` of either spelling (`rope_parameters`, or `rope_theta` with `rope_scaling`).

    Raises:
        ConfigError: a required field is missing, a value is impossible, or the model needs what is not supported.
    """
    fields = Fields(hf)
    heads, context = fields.count("num_attention_heads"), fields.count("max_position_embeddings", 2048)
    attention_bias = fields.take("attention_bias", False)
    if variant.qkv_bias is not None and "attention_bias" in hf and attention_bias != variant.qkv_bias:
        raise ConfigError(
            f"config.json: attention_bias = {attention_bias} contradicts model_type {variant.model_type!r}",
            "Correct the model_type or remove attention_bias",
        )
    window = fields.count("sliding_window", None)
    if fields.take("use_sliding_window", variant.model_type == "mistral") and window is not None and window < context:
        raise ConfigError(
            f"config.json: sliding_window = {window} is active below max_position_embeddings = {context}, "
            "and sliding-window attention is not supported",
            f"Use a model without it, or set max_position_embeddings to {window}",
        )
    if other := sorted(set(fields.take("layer_types", [])) - {"full_attention"}):
        raise ConfigError(f"config.json: layer_types {other} are not supported", "Use a model with full attention only")
    fields.only("partial_rotary_factor", 1, why="only some coordinates of a head would be rotated")
    hidden_size = fields.count("hidden_size")
    config = ModelConfig.parse(
        {
            "family": variant.model_type,
            "vocab_size": fields.take("vocab_size"),
            "hidden_size": hidden_size,
            "max_position_embeddings": context,
            "positions": _positions(fields),
            "decoder": {
                "num_hidden_layers": fields.take("num_hidden_layers"),
                "attention": {
                    "num_attention_heads": heads,
                    "num_key_value_heads": fields.take("num_key_value_heads", heads),
                    "head_dim": fields.take("head_dim", variant.head_dim or hidden_size // heads),
                    "qkv_bias": attention_bias if variant.qkv_bias is None else variant.qkv_bias,
                    "o_bias": attention_bias if variant.qkv_bias is None else False,
                    "qk_norm": variant.qk_norm,
                },
                "mlp": {
                    "intermediate_size": fields.take("intermediate_size"),
                    "hidden_act": fields.activation("hidden_act", "silu"),
                    "bias": fields.take("mlp_bias", False),
                },
                "norm": {"kind": "rms", "eps": fields.take("rms_norm_eps", 1e-6)},
            },
            "tie_word_embeddings": fields.take("tie_word_embeddings", False),
            "initializer_range": fields.take("initializer_range", 0.02),
            "bos_token_id": fields.take("bos_token_id", None),
            "eos_token_ids": token_ids(fields.take("eos_token_id", None)),
        }
    )
    fields.done()
    return config


def _positions(fields: Fields) -> dict[str, Any]:
    """Rotary settings from the new spelling, the old one, or both where they agree."""
    new, old = fields.take("rope_parameters", None), fields.values.get("rope_scaling")
    theta = fields.values.get("rope_theta")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"config.json: {name} = {value!r} is not a mapping", "Write it as an object, or null")
    readings = []
    if new is not None:
        readings.append({"rope_theta": new.get("rope_theta", theta or 10_000.0), "rope_scaling": _scaling(new)})
    if old is not None or theta is not None or new is None:
        readings.append({"rope_theta": theta or 10_000.0, "rope_scaling": _scaling(old or {})})
    if len(readings) == 2 and readings[0] != readings[1]:
        raise ConfigError(
            f"config.json contradicts itself: rope_parameters say {readings[0]}, "
            f"rope_theta and rope_scaling say {readings[1]}",
            "Keep one of the two spellings",
        )
    return {"kind": "rope", **readings[0]}


def _scaling(values: dict[str, Any]) -> dict[str, Any] | None:
    kind = values.get("rope_type", values.get("type", "default"))
    if values.get("partial_rotary_factor", 1) != 1:
        raise ConfigError("config.json: partial rotary embedding is not supported", "Use a model without it")
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(
            f"config.json: rope_type {kind!r} is not supported; 'default' and 'llama3' are", "Use a model without it"
        )
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [k for k in keys if k not in values]:
        raise ConfigError(f"config.json: llama3 RoPE scaling lacks {', '.join(missing)}", "Add them")
    return {"rope_type": "llama3", **{k: values[k] for k in keys}}


def config_to_hf(config: ModelConfig, variant: Variant) -> dict[str, Any]:
    """Write `config.json` in both spellings: readers of version 4 overlook `rope_parameters`, version 5 prefers it."""
    attention, mlp = config.decoder.attention, config.decoder.mlp
    if not isinstance(config.positions, RotaryPositions) or not mlp.gated or config.decoder.norm.kind != "rms":
        raise ConfigError(
            f"the family {variant.model_type!r} has rotary positions, a gated MLP and RMSNorm; this model has not",
            "Choose another family or change these fields",
        )
    scaling = config.positions.rope_scaling
    scaling_values = scaling.to_dict() if scaling else {"rope_type": "default"}
    written: dict[str, Any] = {
        "architectures": [variant.architecture],
        "model_type": variant.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": mlp.intermediate_size,
        "num_hidden_layers": config.decoder.num_hidden_layers,
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "hidden_act": mlp.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.decoder.norm.eps,
        "rope_parameters": {"rope_theta": config.positions.rope_theta, **scaling_values},
        "rope_theta": config.positions.rope_theta,
        "rope_scaling": scaling_values if scaling else None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": one_or_list(config.eos_token_ids),
    }
    if variant.qkv_bias is None:
        written["attention_bias"] = attention.qkv_bias
    if variant.model_type == "llama":
        written["mlp_bias"] = mlp.bias
    if variant.model_type == "mistral":
        written["sliding_window"] = None
    return written


def _preset(
    vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, *,
    context: int, head_dim: int | None = None, theta: float = 10_000.0, factor: float | None = None,
    eps: float = 1e-5, tied: bool = False,
) -> HFConfig:  # fmt: skip
    """The `config.json` of a published model, its public numbers only."""
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if factor is not None:
        rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192}  # fmt: skip
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": context, "rope_parameters": rope, "rms_norm_eps": eps,
        "tie_word_embeddings": tied, "head_dim": head_dim,
    }  # fmt: skip


def _family(variant: Variant, presets: dict[str, HFConfig]) -> Family:
    read = partial(config_from_hf, variant=variant)
    return Family(
        name=variant.model_type,
        architecture=variant.architecture,
        config_from_hf=read,
        config_to_hf=partial(config_to_hf, variant=variant),
        weight_rules=WEIGHT_RULES,
        prefix="model.",
        ignored_tensors=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        presets={name: read(values) for name, values in presets.items()},
    )


LLAMA = _family(
    Variant("llama", "LlamaForCausalLM"),
    {
        "llama-7b": _preset(32000, 4096, 11008, 32, 32, 32, context=2048, eps=1e-6),
        "llama-2-7b": _preset(32000, 4096, 11008, 32, 32, 32, context=4096),
        "llama-3-8b": _preset(128256, 4096, 14336, 32, 32, 8, context=8192, theta=5e5),
        "llama-3.1-8b": _preset(128256, 4096, 14336, 32, 32, 8, context=131072, theta=5e5, factor=8.0),
        "llama-3.2-1b": _preset(
            128256, 2048, 8192, 16, 32, 8, context=131072, head_dim=64, theta=5e5, factor=32.0, tied=True
        ),
        "smollm2-135m": _preset(49152, 576, 1536, 30, 9, 3, context=8192, theta=1e5, tied=True),
    },
)
MISTRAL = _family(
    Variant("mistral", "MistralForCausalLM"),
    {"mistral-7b-v0.3": _preset(32768, 4096, 14336, 32, 32, 8, context=32768, theta=1e6)},
)
QWEN2 = _family(
    Variant("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
    {"qwen2.5-0.5b": _preset(151936, 896, 4864, 24, 14, 2, context=32768, theta=1e6, eps=1e-6, tied=True)},
)
QWEN3 = _family(
    Variant("qwen3", "Qwen3ForCausalLM", qk_norm=True, head_dim=128),
    {"qwen3-0.6b": _preset(151936, 1024, 3072, 28, 16, 8, context=40960, theta=1e6, eps=1e-6, tied=True)},
)
