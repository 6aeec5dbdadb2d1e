"""Models out to GGUF, as llama.cpp's converter writes them. Knows no tokenizer: its metadata is handed in.

What the format cannot say is refused: the metadata is read back before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError, disk_errors
from lmworks.core.gguf_writer import TensorToWrite, write_gguf
from lmworks.models.families import family_named
from lmworks.models.hub import gguf
from lmworks.models.hub.rules import Rule, expand, export_state
from lmworks.models.hub.tensor_source import own_state
from lmworks.models.transformer import Transformer

DType = Literal["f32", "f16", "bf16", "q8_0"]
FILE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
"""Type of the matrices to `general.file_type`."""
_BLOCK = 32
"""Weights that share a scale in q8_0."""
_NOT_IN_FILE = {"family", "initializer_range", "initialization", "bos_token_id", "eos_token_ids"}
"""Fields that may be read back otherwise: they do not change what the model computes."""


def save_gguf(model: Transformer, tokenizer: Mapping[str, Any], path: Path | str, *, dtype: DType = "f16") -> None:
    """Write a model and its tokenizer as one file, which appears whole or not at all.

    Args:
        model: of a family in `hub.gguf.ARCHITECTURES`, with floating-point weights.
        tokenizer: what `tokenization.gguf_export.gguf_metadata` returns for `vocab_size` tokens.
        path: ends in `.gguf`; replaced if it exists, its folder is made if absent.
        dtype: of matrices. Vectors stay float32, and rows that are no multiple of 32 become float16 under q8_0.

    Raises:
        ConfigError: the format cannot express the model, weights exceed the range of float16, or an argument is wrong.
        DiskFullError: the device is full.
    """
    path, config = Path(path), model.config
    row = gguf.architecture_of(config)
    if path.suffix != ".gguf":
        raise ConfigError(f"the name {path.name!r} does not end in .gguf, and readers look for that", "Change it")
    if dtype not in FILE_TYPES:
        raise ConfigError(f"dtype {dtype!r} is not written to GGUF", f"Choose one of {', '.join(get_args(DType))}")
    state = own_state(model)
    if integers := [name for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise ConfigError(
            f"{integers[0]} holds {state[integers[0]].dtype}, and only floating-point weights are written to GGUF",
            "Export the model it was quantized from; dtype q8_0 quantizes to 8 bits",
        )
    if (tokens := len(tokenizer["tokenizer.ggml.tokens"])) != config.vocab_size:
        raise ConfigError(
            f"there are {tokens} tokens for {config.vocab_size} embedding rows", "Use the model's own tokenizer, padded"
        )
    hf, rules = family_named(config.family).to_hf(config), gguf.weight_rules(config)
    covered = {name for rule in rules for name in rule.ours}
    if homeless := [name for name in state if re.sub(r"\.\d+\.", ".{i}.", name, count=1) not in covered]:
        raise ConfigError(f"GGUF's architecture {row.name!r} has no place for {homeless[0]}", "Keep the model's folder")
    rules = expand(rules, state, config.output_stack.num_hidden_layers)
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    tensors = [t for rule in rules for t in _tensors(rule, meta, state, dtype)]
    scaling, factors = hf.get("rope_scaling") or {}, None
    if scaling.get("rope_type") == "llama3":
        factors = gguf.llama3_factors(hf["head_dim"], hf["rope_theta"], scaling)
        tensors.append(TensorToWrite(gguf.ROPE_FACTORS, tuple(factors.shape), "F32", factors.numpy))
    metadata = {
        "general.architecture": row.name,
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **{f"{row.name}.{key}": value for key, value in _numbers(row, hf, scaling).items()},
        **{f"tokenizer.ggml.{end}_token_id": i for end, i in zip(gguf.END_IDS, config.eos_token_ids, strict=False)},
        **tokenizer,
    }
    again = gguf.config_from_metadata(metadata, {t.name: t.shape for t in tensors}, factors, str(path)).to_dict()
    wanted = config.to_dict()
    if lost := [k for k in wanted if k not in _NOT_IN_FILE and wanted[k] != again[k]]:
        raise ConfigError(
            f"GGUF's architecture {row.name!r} cannot express this model's {', '.join(lost)}: "
            f"{[wanted[k] for k in lost]} would be read back as {[again[k] for k in lost]}",
            "Keep the model's folder, or change these fields",
        )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata, tensors)


def _numbers(row: gguf.Architecture, hf: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters below the architecture's name."""
    numbers = {key: hf[theirs] for key, theirs in row.keys.items() if hf.get(theirs) is not None}
    if "head_dim" in hf:
        rotated = int(hf["head_dim"] * (hf.get("partial_rotary_factor") or 1))
        numbers |= {"attention.value_length": hf["head_dim"], "rope.dimension_count": rotated}
    if (kind := scaling.get("rope_type")) in gguf.SCALINGS:
        numbers["rope.scaling.type"] = kind
        numbers |= {f"rope.scaling.{key}": scaling[theirs] for key, theirs in gguf.SCALINGS[kind].items()}
    return {**numbers, "vocab_size": hf["vocab_size"]}


def _tensors(rule: Rule, meta: Mapping[str, Tensor], state: Mapping[str, Tensor], dtype: str) -> list[TensorToWrite]:
    """What one rule writes; weights are converted when it is their turn."""
    tensors = []
    for name, tensor in export_state([rule], meta).items():
        form = "F16" if dtype == "q8_0" and tensor.shape[-1] % _BLOCK else dtype.upper()
        if tensor.ndim == 1 or name == "position_embd.weight":  # llama.cpp adds and multiplies these in float32 only
            form = "F32"
        tensors.append(TensorToWrite(name, tuple(tensor.shape), form, partial(_values, rule, state, name, form)))
    return tensors


def _values(rule: Rule, state: Mapping[str, Tensor], name: str, form: str) -> Any:
    exported = rule.export([state[ours] for ours in rule.ours])[name]
    values = exported.detach().to("cpu", torch.float32).contiguous()
    largest = float(values.abs().max())
    if form == "F16" and not largest <= torch.finfo(torch.float16).max:
        raise ConfigError(f"{name} holds {largest:g}, which float16 cannot", 'Choose dtype "bf16" or "f32"')
    return values.numpy()
