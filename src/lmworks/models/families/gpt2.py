"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, plain GELU MLP, tied head.

On disk its linear maps are `Conv1D`, that is [in, out], and queries, keys and values are one fused matrix.
"""

from __future__ import annotations

from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.config import LearnedPositions, ModelConfig
from lmworks.models.families.family import Family
from lmworks.models.families.hf_config import Fields, HFConfig, one_or_list, token_ids
from lmworks.models.hub.rules import Rule, Split, Transpose, rename, with_bias

_QKV = tuple(f"decoder.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")

WEIGHT_RULES = (
    rename("embed_tokens.weight", "transformer.wte.weight"),
    rename("embed_positions.weight", "transformer.wpe.weight"),
    Rule(tuple(f"{n}.weight" for n in _QKV), ("transformer.h.{i}.attn.c_attn.weight",), (Transpose(), Split())),
    Rule(tuple(f"{n}.bias" for n in _QKV), ("transformer.h.{i}.attn.c_attn.bias",), (Split(),)),
    *with_bias("decoder.layers.{i}.self_attn.o_proj", "transformer.h.{i}.attn.c_proj", Transpose()),
    *with_bias("decoder.layers.{i}.mlp.up_proj", "transformer.h.{i}.mlp.c_fc", Transpose()),
    *with_bias("decoder.layers.{i}.mlp.down_proj", "transformer.h.{i}.mlp.c_proj", Transpose()),
    *with_bias("decoder.layers.{i}.input_layernorm", "transformer.h.{i}.ln_1"),
    *with_bias("decoder.layers.{i}.post_attention_layernorm", "transformer.h.{i}.ln_2"),
    *with_bias("decoder.norm", "transformer.ln_f"),
    rename("lm_head.weight", "lm_head.weight"),
)


def config_from_hf(hf: HFConfig) -> ModelConfig:
    """Read a `config.json` with `model_type` gpt2.

    Raises:
        ConfigError: a required field is missing, a value is impossible, or the model needs what is not supported.
    """
    fields = Fields(hf)
    fields.only("scale_attn_weights", True, why="scores are always divided by the square root of the head size")
    fields.only("scale_attn_by_inverse_layer_idx", False, why="scores do not depend on the layer")
    fields.only("add_cross_attention", False, why="there is no encoder")
    hidden_size, heads = fields.count("n_embd"), fields.count("n_head")
    if hidden_size % heads:
        raise ConfigError(
            f"config.json: n_embd {hidden_size} is not a multiple of n_head {heads}", "Change one of them"
        )
    config = ModelConfig.parse(
        {
            "family": "gpt2",
            "vocab_size": fields.take("vocab_size"),
            "hidden_size": hidden_size,
            "max_position_embeddings": fields.take("n_positions"),
            "positions": {"kind": "learned"},
            "decoder": {
                "num_hidden_layers": fields.take("n_layer"),
                "attention": {
                    "num_attention_heads": heads,
                    "num_key_value_heads": heads,
                    "head_dim": hidden_size // heads,
                    "qkv_bias": True,
                    "o_bias": True,
                },
                "mlp": {
                    "intermediate_size": fields.take("n_inner", 4 * hidden_size),
                    "hidden_act": fields.activation("activation_function", "gelu_new"),
                    "gated": False,
                    "bias": True,
                },
                "norm": {"kind": "layer", "eps": fields.take("layer_norm_epsilon", 1e-5)},
            },
            "tie_word_embeddings": fields.take("tie_word_embeddings", True),
            "initializer_range": fields.take("initializer_range", 0.02),
            "bos_token_id": fields.take("bos_token_id", None),
            "eos_token_ids": token_ids(fields.take("eos_token_id", None)),
        }
    )
    fields.done()
    return config


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Write `config.json`; dropout is written as 0, for this model has none."""
    attention, mlp = config.decoder.attention, config.decoder.mlp
    if not isinstance(config.positions, LearnedPositions) or mlp.gated or config.decoder.norm.kind != "layer":
        raise ConfigError(
            "the family 'gpt2' has learned positions, a plain MLP and LayerNorm; this model has not",
            "Choose another family or change these fields",
        )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.decoder.num_hidden_layers,
        "n_head": attention.num_attention_heads,
        "n_positions": config.max_position_embeddings,
        "n_inner": mlp.intermediate_size,
        "activation_function": "gelu_new" if mlp.hidden_act == "gelu_pytorch_tanh" else mlp.hidden_act,
        "layer_norm_epsilon": config.decoder.norm.eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": one_or_list(config.eos_token_ids),
    }


def _preset(hidden_size: int, layers: int, heads: int) -> ModelConfig:
    return config_from_hf({
        "vocab_size": 50257, "n_embd": hidden_size, "n_layer": layers, "n_head": heads, "n_positions": 1024,
        "bos_token_id": 50256, "eos_token_id": 50256,
    })  # fmt: skip


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    weight_rules=WEIGHT_RULES,
    prefix="transformer.",
    ignored_tensors=(r"h\.\d+\.attn\.(masked_)?bias",),
    presets={
        "gpt2": _preset(768, 12, 12),
        "gpt2-medium": _preset(1024, 24, 16),
        "gpt2-large": _preset(1280, 36, 20),
        "gpt2-xl": _preset(1600, 48, 25),
    },
)
