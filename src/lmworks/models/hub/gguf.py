"""Models in GGUF files, LLaMA architecture, decoded to floating point. Reading only.

llama.cpp turns adjacent pairs of coordinates where we turn halves, so its converter interleaves the rows of
the query and key projections; the rules here undo that. The container itself is read by `core.gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.core.gguf import GGUFFile
from lmworks.models.config import ModelConfig, RopeScaling
from lmworks.models.hub.rules import PairsToHalves, Rule, Shape, rename, with_bias
from lmworks.nn.rope import inverse_frequencies, llama3_scaled

ROPE_FACTORS = "rope_freqs.weight"
_BLOCK = "decoder.layers.{i}."


class GGUFSource:
    """The tensors of an open GGUF file, without the rotary factors, which are configuration."""

    def __init__(self, file: GGUFFile) -> None:
        self.name, self._file = str(file.path), file

    def shapes(self) -> Mapping[str, Shape]:
        """See `TensorSource`."""
        return {n: self._file.shape(n) for n in self._file.tensor_names if n != ROPE_FACTORS}

    def tensor(self, name: str) -> Tensor:
        """See `TensorSource`."""
        return torch.from_numpy(self._file.tensor(name))


def read_gguf(path: Path | str) -> GGUFFile:
    """Open a GGUF file: its `metadata` and, decoded when asked for, its tensors."""
    return GGUFFile(path)


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The model's configuration from the file's metadata.

    Raises:
        ConfigError: another architecture than LLaMA, a missing value, or a feature that is not supported.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise ConfigError(
            f"{file.path}: general.architecture is {architecture!r}; only 'llama' is read from GGUF",
            "Use the model's Hugging Face folder",
        )
    heads, hidden_size = _need(file, "attention.head_count"), _need(file, "embedding_length")
    head_dim = file.metadata.get("llama.attention.key_length", hidden_size // max(heads, 1))
    rotated = file.metadata.get("llama.rope.dimension_count", head_dim)
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    experts = file.metadata.get("llama.expert_count", 0)
    for name, value, allowed in (
        ("rope.dimension_count", rotated, head_dim),
        ("attention.value_length", file.metadata.get("llama.attention.value_length", head_dim), head_dim),
        ("rope.scaling.type", scaling, "none"),
        ("expert_count", experts, 0),
    ):
        if value != allowed:
            raise ConfigError(
                f"{file.path}: llama.{name} = {value!r} is not supported, only {allowed!r}", "Use another model"
            )
    theta = file.metadata.get("llama.rope.freq_base", 10_000.0)
    ids = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    return ModelConfig.parse(
        {
            "family": "llama",
            "vocab_size": file.shape("token_embd.weight")[0],
            "hidden_size": hidden_size,
            "max_position_embeddings": _need(file, "context_length"),
            "positions": {"kind": "rope", "rope_theta": theta, "rope_scaling": _scaling(file, head_dim, theta)},
            "decoder": {
                "num_hidden_layers": _need(file, "block_count"),
                "attention": {
                    "num_attention_heads": heads,
                    "num_key_value_heads": file.metadata.get("llama.attention.head_count_kv", heads),
                    "head_dim": head_dim,
                    "qkv_bias": "blk.0.attn_q.bias" in file.tensor_names,
                    "o_bias": "blk.0.attn_output.bias" in file.tensor_names,
                },
                "mlp": {
                    "intermediate_size": _need(file, "feed_forward_length"),
                    "bias": "blk.0.ffn_up.bias" in file.tensor_names,
                },
                "norm": {"kind": "rms", "eps": _need(file, "attention.layer_norm_rms_epsilon")},
            },
            "tie_word_embeddings": "output.weight" not in file.tensor_names,
            "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_ids": tuple(dict.fromkeys(i for i in ids if i is not None)),
        }
    )


def weight_rules(head_dim: int) -> tuple[Rule, ...]:
    """The LLaMA architecture's tensors in GGUF."""
    turned = PairsToHalves(head_dim)
    return (
        rename("embed_tokens.weight", "token_embd.weight"),
        *with_bias(f"{_BLOCK}self_attn.q_proj", "blk.{i}.attn_q", turned),
        *with_bias(f"{_BLOCK}self_attn.k_proj", "blk.{i}.attn_k", turned),
        *with_bias(f"{_BLOCK}self_attn.v_proj", "blk.{i}.attn_v"),
        *with_bias(f"{_BLOCK}self_attn.o_proj", "blk.{i}.attn_output"),
        *with_bias(f"{_BLOCK}mlp.gate_proj", "blk.{i}.ffn_gate"),
        *with_bias(f"{_BLOCK}mlp.up_proj", "blk.{i}.ffn_up"),
        *with_bias(f"{_BLOCK}mlp.down_proj", "blk.{i}.ffn_down"),
        rename(f"{_BLOCK}input_layernorm.weight", "blk.{i}.attn_norm.weight"),
        rename(f"{_BLOCK}post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
        rename("decoder.norm.weight", "output_norm.weight"),
        rename("lm_head.weight", "output.weight"),
    )


def _need(file: GGUFFile, key: str) -> Any:
    value = file.metadata.get(f"llama.{key}")
    if value is None:
        raise ConfigError(f"{file.path} lacks the metadata llama.{key}", "Use a complete GGUF file")
    return value


def _scaling(file: GGUFFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Llama 3's scaling from the per-frequency divisors it is stored as; its other constants are public."""
    if ROPE_FACTORS not in file.tensor_names:
        return None
    factors = torch.from_numpy(file.tensor(ROPE_FACTORS))
    scaling = RopeScaling(factor=float(factors.max()))
    speeds = inverse_frequencies(head_dim, theta)
    expected = speeds / llama3_scaled(
        speeds,
        scaling.factor,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
    )
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise ConfigError(f"{file.path}: its {ROPE_FACTORS} are not Llama 3's scaling", "Use the Hugging Face folder")
    return scaling.to_dict()
