"""Models in GGUF files: llama.cpp's spelling of a family's `config.json` and tensor names, as tables.

The family itself does the rest, in both directions: `config_from_metadata` and `weight_rules` here,
`compress.gguf_export` there. The container is `core.gguf`'s business, the tokenizer inside `tokenization.gguf`'s.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.core.gguf import GGUFFile, open_gguf
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named
from lmworks.models.hub.quantization_source import GridKind
from lmworks.models.hub.rules import Operation, PairsToHalves, Rule, Shape, Transpose
from lmworks.models.slots import AttentionConfig
from lmworks.nn.quantized import QuantizedWeight
from lmworks.nn.rope import inverse_frequencies, llama3_scaled

ROPE_FACTORS = "rope_freqs.weight"
END_IDS = ("eos", "eot", "eom")
"""Tokens that end a generation, as `tokenizer.ggml.{}_token_id`."""
SCALINGS: dict[str, dict[str, str]] = {
    "none": {},
    "linear": {"factor": "factor"},
    "yarn": {"factor": "factor", "original_context_length": "original_max_position_embeddings"},
}
"""`rope.scaling.type`: keys below `rope.scaling` and the fields of Hugging Face's scaling of that name."""

_SIZES = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}  # fmt: skip
_GPT2_SIZES = {
    "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer",
    "feed_forward_length": "n_inner", "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}  # fmt: skip
_WINDOW = {"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping"}
_FACTORS = {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling"}  # fmt: skip
_REQUIRED = re.compile(r"(?!attention\.head_count_kv)\w+_(length|count)|attention\.head_count|.*_epsilon")
_CHECKED = {"attention.value_length", "expert_count", "expert_used_count", "rope.dimension_count", "vocab_size"}

_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in ("q", "k", "v", "qkv")}, "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Modules in Hugging Face's files, without prefix and layer, and in GGUF files."""
_AROUND = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
           "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip
_GPT2_NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output", "ln_1": "attn_norm",
    "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip


@dataclass(frozen=True)
class _Offset:
    """Theirs is ours and so much more: Gemma's norms, stored less one elsewhere."""

    amount: float

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return [t - self.amount for t in tensors]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t + self.amount for t in tensors]


_GEMMA_NORMS = dict.fromkeys(("norm", "input_layernorm", "self_attn.q_norm", "self_attn.k_norm", *_AROUND), _Offset(1))
_GPT2_MATRICES = dict.fromkeys((n for n in _GPT2_NAMES if ".c_" in n), Transpose())


def _gemma_scale(hf: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp divides Gemma's scores by: the size of a head, but for the two largest models."""
    largest = hf["num_hidden_layers"] in (46, 62)
    return {"query_pre_attn_scalar": hf["hidden_size"] // hf["num_attention_heads"] if largest else hf["head_dim"]}


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture` of llama.cpp."""

    name: str
    families: tuple[str, ...]
    """Those written as it; it is read as the first."""
    keys: Mapping[str, str] = field(default_factory=lambda: _SIZES)
    """Metadata below the architecture's name, and keys of `config.json`: all of them positive numbers."""
    names: Mapping[str, str] = field(default_factory=lambda: _NAMES)
    biases: str = ""
    """Which modules in GGUF may have one: a regular expression."""
    rope_pairs: bool = False
    """It turns adjacent pairs of coordinates, we halves: the rows of queries and keys are interleaved."""
    operations: Mapping[str, Operation] = field(default_factory=dict)
    """What else leads from its tensors to Hugging Face's, by module."""
    implied: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda hf: {}
    """Further keys of `config.json`."""


_TIED = {ours: theirs for ours, theirs in _NAMES.items() if ours != "lm_head"}
ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture("llama", ("llama", "mistral"), biases="attn_.*|ffn_.*", rope_pairs=True),
        Architecture("qwen2", ("qwen2",), biases="attn_[qkv]"),
        Architecture("qwen3", ("qwen3",)),
        Architecture("granite", ("granite",), _SIZES | _FACTORS, biases="attn_.*|ffn_.*", rope_pairs=True),
        Architecture("smollm3", ("smollm3",), rope_pairs=True),
        Architecture("olmo2", ("olmo2",), names=_NAMES | _AROUND),
        Architecture("phi3", ("phi3",)),
        Architecture("gemma", ("gemma",), names=_TIED, operations=_GEMMA_NORMS | dict.fromkeys(_AROUND, _Offset(1))),
        Architecture(
            "gemma2", ("gemma2",), _SIZES | _WINDOW | {"attn_logit_softcapping": "attn_logit_softcapping"},
            _TIED | _AROUND, operations=_GEMMA_NORMS, implied=_gemma_scale,
        ),
        Architecture(
            "gemma3", ("gemma3_text",), _SIZES | _WINDOW | {"rope.freq_base_swa": "rope_local_base_freq"},
            _NAMES | _AROUND, operations=_GEMMA_NORMS, implied=_gemma_scale,
        ),
        Architecture("gpt2", ("gpt2",), _GPT2_SIZES, _GPT2_NAMES, biases=".*", operations=_GPT2_MATRICES),
    )
}  # fmt: skip


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

    def kind(self, name: str) -> GridKind | None:
        """See `GridSource`."""
        form = self._file.grid_format(name)
        return None if form is None else GridKind(form.bits, form.group_size, form.has_zero)

    def grid(self, name: str) -> QuantizedWeight:
        """See `GridSource`."""
        form, (values, scale, zero) = self._file.grid_format(name), self._file.grid(name)
        assert form is not None
        shifts = None if zero is None else torch.from_numpy(zero)
        return QuantizedWeight(torch.from_numpy(values), torch.from_numpy(scale), shifts, form.bits, form.group_size)


def read_gguf(path: Path | str) -> GGUFFile:
    """Open a GGUF file: its `metadata` and, decoded when asked for, its tensors."""
    return open_gguf(path)


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The model's configuration.

    Raises:
        ConfigError: an architecture that is not read, a missing or impossible value, or an unsupported feature.
    """
    factors = torch.from_numpy(file.tensor(ROPE_FACTORS)) if ROPE_FACTORS in file.tensor_names else None
    shapes = {n: file.shape(n) for n in file.tensor_names}
    return config_from_metadata(file.metadata, shapes, factors, str(file.path))


def config_from_metadata(
    metadata: Mapping[str, Any], shapes: Mapping[str, Shape], factors: Tensor | None, name: str
) -> ModelConfig:
    """The configuration that metadata and the tensors beside it describe.

    Args:
        metadata: the file's key-value pairs.
        shapes: of the file's tensors; which ones there are tells biases and a tied head.
        factors: divisors of the angular speeds, the tensor `rope_freqs.weight`.
        name: how errors call the file.

    Raises:
        ConfigError: see `config_from_gguf`.
    """
    row = ARCHITECTURES.get(str(metadata.get("general.architecture")))
    if row is None:
        raise ConfigError(
            f"{name}: general.architecture is {metadata.get('general.architecture')!r}; "
            f"read from GGUF are {', '.join(ARCHITECTURES)}",
            "Use the model's Hugging Face folder",
        )
    values = {k.removeprefix(f"{row.name}."): v for k, v in metadata.items() if k.startswith(f"{row.name}.")}
    ends = (metadata.get(f"tokenizer.ggml.{end}_token_id") for end in END_IDS)
    try:
        hf = {
            **_hf_config(row, values, shapes, factors),
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(dict.fromkeys(i for i in ends if isinstance(i, int))) or None,
        }
        config = family_named(row.families[0]).config_from_hf({**hf, **row.implied(hf)})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.problem}", error.remedy) from None
    if unread := [k for k in values if k not in row.keys and k not in _CHECKED and not k.startswith("rope.scaling.")]:
        warnings.warn(f"{name}: {', '.join(f'{row.name}.{k}' for k in unread)} have no effect here", stacklevel=3)
    return config


def _hf_config(
    row: Architecture, values: Mapping[str, Any], shapes: Mapping[str, Shape], factors: Tensor | None
) -> dict[str, Any]:
    """`config.json` from the values below the architecture's name, checked before anything is sized by them."""
    for key in row.keys:
        value = values.get(key)
        if value is None and _REQUIRED.fullmatch(key) and key != "attention.key_length":
            raise ConfigError(f"the metadata {row.name}.{key} is missing", "Use a complete GGUF file")
        if value is not None and (isinstance(value, (bool, str, list)) or not value > 0):
            raise ConfigError(f"{row.name}.{key} is not one positive number", "Use the model's Hugging Face folder")
    heads, hidden_size = values["attention.head_count"], values["embedding_length"]
    head_dim = values.get("attention.key_length", hidden_size // heads)
    rotated = values.get("rope.dimension_count", head_dim)
    for key, allowed in (
        ("rope.dimension_count", (head_dim,) if row.rope_pairs else (rotated,)),
        ("rope.scaling.type", tuple(SCALINGS)),
        ("attention.value_length", (head_dim,)),
        ("expert_count", (0,)),
    ):
        if (value := values.get(key, allowed[0])) not in allowed:
            shown = " or ".join(map(repr, allowed))
            raise ConfigError(f"{row.name}.{key} = {value!r} is not supported, only {shown}", "Use another model")
    blocks = {found[1] for tensor in shapes if (found := re.match(r"blk\.(\d+)\.", tensor))}
    queries = shapes.get("blk.0.attn_q.weight", shapes.get("blk.0.attn_qkv.weight", (0,)))
    if len(blocks) != values["block_count"] or queries[0] < heads * head_dim:
        raise ConfigError(
            f"{values['block_count']} blocks with {heads} heads of {head_dim} coordinates are announced, and there are "
            f"tensors of {len(blocks)} blocks with queries of shape {list(queries)}",
            "Use a complete GGUF file",
        )
    theta = values.get("rope.freq_base", 10_000.0)
    rotary = {
        "head_dim": head_dim,
        "rope_theta": theta,
        "rope_scaling": _scaling(values, factors, rotated, theta),
        "partial_rotary_factor": None if rotated == head_dim else rotated / head_dim,
        "attention_bias": "blk.0.attn_output.bias" in shapes or None,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes or None,
    }
    return {
        "vocab_size": shapes.get("token_embd.weight", (0,))[0],
        "tie_word_embeddings": "output.weight" not in shapes,
        **{key: value for key, value in rotary.items() if value is not None and "rope.freq_base" in row.keys},
        **{theirs: values[key] for key, theirs in row.keys.items() if key in values},
    }


def weight_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The tensors in GGUF files of a configuration's family."""
    row, family = architecture_of(config), family_named(config.family)
    assert config.decoder is not None
    attention = config.decoder.attention
    assert isinstance(attention, AttentionConfig)
    pairs = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj"), PairsToHalves(attention.head_dim))
    operations = {**(pairs if row.rope_pairs else {}), **row.operations}
    rules = family.weight_rules(config) if callable(family.weight_rules) else family.weight_rules
    translated = []
    for rule in rules:
        found = [re.fullmatch(r"(\w+\.\{i\}\.)?(.+)\.(\w+)", n.removeprefix(family.prefix)) for n in rule.theirs]
        parts = [(p[1], p[2], p[3]) for p in found if p and p[2] in row.names]
        stored = all(kind == "weight" or re.fullmatch(row.biases, row.names[module]) for _, module, kind in parts)
        if stored and len(parts) == len(rule.theirs):
            theirs = tuple(f"{'blk.{i}.' if layer else ''}{row.names[module]}.{kind}" for layer, module, kind in parts)
            undone = tuple(operations[module] for _, module, _ in parts if module in operations)
            translated.append(replace(rule, theirs=theirs, operations=(*undone, *rule.operations), also=()))
    return tuple(translated)


def architecture_of(config: ModelConfig) -> Architecture:
    """The row that a model's family is written as.

    Raises:
        ConfigError: there is none.
    """
    for row in ARCHITECTURES.values():
        if config.family in row.families:
            return row
    known = ", ".join(family for row in ARCHITECTURES.values() for family in row.families)
    raise ConfigError(f"the family {config.family!r} is not written as GGUF; {known} are", "Keep the model's folder")


def llama3_factors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> Tensor:
    """What Llama 3's scaling divides each angular speed by, [D/2]."""
    speeds = inverse_frequencies(head_dim, theta)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return speeds / llama3_scaled(speeds, scaling["factor"], low, high, scaling["original_max_position_embeddings"])


def _scaling(values: Mapping[str, Any], factors: Tensor | None, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Named scaling, or Llama 3's from the divisors it is stored as: its other constants are public."""
    kind = values.get("rope.scaling.type", "none")
    if factors is not None:
        scaling = {"rope_type": "llama3", "factor": float(str(factors.max().numpy())), "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
        expected = llama3_factors(head_dim, theta, scaling)
        if kind != "none" or factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
            raise ConfigError(f"its {ROPE_FACTORS} are not Llama 3's scaling", "Use the model's Hugging Face folder")
        return scaling
    read = {ours: values.get(f"rope.scaling.{key}") for key, ours in SCALINGS[kind].items()}
    return {"rope_type": kind, **read} if read else None
