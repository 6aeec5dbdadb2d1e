"""Models out to GGUF, as llama.cpp's converter writes them. Knows no tokenizer: its metadata is handed in.

What the format cannot say is refused: the metadata is read back before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError, disk_errors
from lmworks.core.gguf_writer import TensorToWrite, write_gguf
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named
from lmworks.models.hub.gguf import (
    END_IDS,
    ROPE_FACTORS,
    SCALINGS,
    Architecture,
    architecture_of,
    config_from_metadata,
    llama3_factors,
    weight_rules,
)
from lmworks.models.hub.rules import Rule, Shape, expand, export_state
from lmworks.models.hub.tensor_source import own_state
from lmworks.models.transformer import Transformer

DType = Literal["f32", "f16", "bf16", "q8_0"]
FILE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""Type of the matrices to `general.file_type`."""
_UNUSED = 5
_BLOCK = 32
"""Weights that share a scale in q8_0."""
_NOT_IN_FILE = {"family", "initializer_range", "initialization", "bos_token_id", "eos_token_ids"}
"""Fields that may be read back otherwise: they do not change what the model computes."""


def save_gguf(model: Transformer, tokenizer: Mapping[str, Any], path: Path | str, *, dtype: DType = "f16") -> None:
    """Write a model and its tokenizer as one file, which appears whole or not at all.

    Args:
        model: of a family in `hub.gguf.ARCHITECTURES`, with floating-point weights.
        tokenizer: what `tokenization.gguf_export.gguf_metadata` returns.
        path: ends in `.gguf`; replaced if it exists, its folder is made if absent.
        dtype: of matrices. Vectors stay float32, and rows that are no multiple of 32 become float16 under q8_0.

    Raises:
        ConfigError: the format cannot express the model, the name, or weights exceed the range of float16.
        DiskFullError: the device is full.
    """
    path, config = Path(path), model.config
    row = architecture_of(config)
    if path.suffix != ".gguf":
        raise ConfigError(
            f"the name {path.name!r} does not end in .gguf, and readers look for that", "Change it"
        )
    if dtype not in FILE_TYPES:
        raise ConfigError(f"dtype {dtype!r} is not written to GGUF", f"Choose one of {', '.join(get_args(DType))}")
    state = own_state(model)
    if integers := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise ConfigError(
            f"{integers[0]} holds {state[integers[0]].dtype}, and only floating-point weights are written to GGUF",
            "Export the model it was quantized from; dtype q8_0 quantizes to 8 bits",
        )
    hf = family_named(config.family).to_hf(config)
    assert config.decoder is not None
    rules = expand(weight_rules(config), state, config.decoder.num_hidden_layers)
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    tensors = [t for rule in rules for t in _tensors(rule, meta, state, dtype)]
    scaling = hf.get("rope_scaling") or {}
    factors = None
    if scaling.get("rope_type") == "llama3":
        factors = llama3_factors(hf["head_dim"], hf["rope_theta"], scaling)
        tensors.append(TensorToWrite(ROPE_FACTORS, tuple(factors.shape), "F32", factors.numpy))
    metadata = {
        "general.architecture": row.name,
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **{f"{row.name}.{key}": value for key, value in _numbers(row, hf, scaling).items()},
        **_vocabulary(tokenizer, config),
    }
    _check_round_trip(config, metadata, {t.name: t.shape for t in tensors}, factors)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata, tensors)


def _numbers(row: Architecture, hf: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters below the architecture's name."""
    numbers = {key: hf[theirs] for key, theirs in row.keys.items() if hf.get(theirs) is not None}
    if "head_dim" in hf:
        rotated = int(hf["head_dim"] * (hf.get("partial_rotary_factor") or 1))
        numbers |= {"attention.value_length": hf["head_dim"], "rope.dimension_count": rotated}
    if (kind := scaling.get("rope_type")) in SCALINGS:
        numbers["rope.scaling.type"] = kind
        numbers |= {f"rope.scaling.{key}": scaling[theirs] for key, theirs in SCALINGS[kind].items()}
    return {**numbers, "vocab_size": hf["vocab_size"]}


def _vocabulary(tokenizer: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The tokenizer with a token for every embedding row, and the ends of a generation the model knows of."""
    written = dict(tokenizer)
    tokens = list(written["tokenizer.ggml.tokens"])
    spare = config.vocab_size - len(tokens)
    if spare < 0:
        raise ConfigError(
            f"the tokenizer has {len(tokens)} tokens, the model only {config.vocab_size} embedding rows",
            "Use the tokenizer the model was trained with",
        )
    written["tokenizer.ggml.tokens"] = tokens + [f"[PAD{i}]" for i in range(len(tokens), config.vocab_size)]
    written["tokenizer.ggml.token_type"] = [*written["tokenizer.ggml.token_type"], *[_UNUSED] * spare]
    if config.bos_token_id is not None:
        written.setdefault("tokenizer.ggml.bos_token_id", config.bos_token_id)
    known = [written.get(f"tokenizer.ggml.{end}_token_id") for end in END_IDS]
    ends = dict.fromkeys([*(i for i in known if i is not None), *config.eos_token_ids])
    return written | {f"tokenizer.ggml.{key}_token_id": i for key, i in zip(END_IDS, ends, strict=False)}


def _tensors(rule: Rule, meta: Mapping[str, Tensor], state: Mapping[str, Tensor], dtype: str) -> list[TensorToWrite]:
    """What one rule writes; weights are converted when it is their turn."""

    def reader(name: str) -> Any:
        return lambda: _values(rule.export([state[n] for n in rule.ours])[name], name, form[name])

    shapes = {name: tuple(tensor.shape) for name, tensor in export_state([rule], meta).items()}
    form = {name: _format(shape, dtype) for name, shape in shapes.items()}
    return [TensorToWrite(name, shape, form[name], reader(name)) for name, shape in shapes.items()]


def _format(shape: Shape, dtype: str) -> str:
    if len(shape) == 1:  # llama.cpp adds and multiplies vectors in float32 only
        return "F32"
    return "F16" if dtype == "q8_0" and shape[-1] % _BLOCK else dtype.upper()


def _values(tensor: Tensor, name: str, form: str) -> Any:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    largest = float(values.abs().max())
    if form == "F16" and not largest <= torch.finfo(torch.float16).max:
        raise ConfigError(f"{name} holds {largest:g}, which float16 cannot", 'Choose dtype "bf16" or "f32"')
    return values.numpy()


def _check_round_trip(
    config: ModelConfig, metadata: Mapping[str, Any], shapes: Mapping[str, Shape], factors: Tensor | None
) -> None:
    again = config_from_metadata(metadata, shapes, factors, "the GGUF file").to_dict()
    wanted = config.to_dict()
    if lost := [k for k in wanted if k not in _NOT_IN_FILE and not _same(wanted[k], again[k])]:
        raise ConfigError(
            f"GGUF's architecture {architecture_of(config).name!r} cannot express this model's {', '.join(lost)}: "
            f"{[wanted[k] for k in lost]} would be read back as {[again[k] for k in lost]}",
            "Keep the model's folder, or change these fields",
        )


def _same(a: Any, b: Any) -> bool:
    """Equal, real numbers as far as float32 goes."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
