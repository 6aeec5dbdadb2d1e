"""Load and save whole models: Hugging Face folders, plain or quantized, and GGUF files.

Everything is checked before weights are read: the configuration, the names and shapes of all tensors, the
memory needed and, for artifacts of ours, the hashes in `lineage.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmworks.core.errors import CheckpointError, ConfigError, disk_errors
from lmworks.core.gguf import GGUFFile, open_gguf
from lmworks.core.lineage import MANIFEST, load_manifest, sha256
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named, family_of
from lmworks.models.families.hf_config import one_or_list
from lmworks.models.hub import quantization
from lmworks.models.hub.gguf import GGUFSource, config_from_gguf, weight_rules
from lmworks.models.hub.rules import expand, export_state, without_prefix
from lmworks.models.hub.safetensors_io import SafetensorsSource, weight_files, write_safetensors
from lmworks.models.hub.tensor_source import Respelled, TensorSource, check_depth, fill, own_state
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import QuantizedMatrix

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pretrained(
    path: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
    keep_quantized: bool | None = None,
) -> Transformer:  # fmt: skip
    """Load a model.

    Args:
        path: a Hugging Face folder (plain, or quantized by compressed-tensors, GPTQ, AWQ, bitsandbytes or as FP8) or a
            `.gguf` file.
        dtype: of the weights; None keeps what `config.json` names (float32 for GGUF). Grids keep their own.
        device: where the weights go.
        keep_quantized: weights on a grid of 8 or 4 bits stay on it, in `QuantizedLinear`s, which cannot be trained;
            False decodes all to `dtype`. None keeps those of folders and decodes GGUF files. Weights on no grid
            (FP8, NF4, FP4, reordered columns, experts) are always decoded: computed in float32, rounded once.

    Raises:
        ConfigError: the configuration is impossible or needs what is not supported.
        CheckpointError: weights are missing, damaged, changed since they were made, do not fit the
            configuration, or do not fit into memory.
    """
    path = _model_path(path)
    if path.is_file():
        return _load_gguf(open_gguf(path), dtype or torch.float32, device, keep_quantized=bool(keep_quantized))
    hf = read_json(path / CONFIG)
    verify_weights(path)
    row, config = family_of(hf), read_config(path)
    stored = Respelled(SafetensorsSource(path), row.legacy_names)
    quantized = quantization.quantized_source(stored, hf, path)
    source: TensorSource = quantized or stored
    config = row.as_stored(config, source.shapes())
    check_depth(config, row.templates(config), source, row.prefix)
    model = _empty(config)
    rules, dtype = row.rules(model.config, own_state(model)), dtype or _dtype(hf)
    if quantized is not None:
        if not any(name.startswith(row.prefix) for name in quantized.shapes()):
            rules = without_prefix(rules, row.prefix)
        rules = quantization.as_stored(rules, quantized)
        if keep_quantized is not False:
            rules, source = quantization.keep_grids(model, rules, quantized, dtype, device)
    fill(
        model, rules, source, prefix=row.prefix, ignored=row.ignored(config), tied=row.tied, aliases=row.aliases,
        dtype=dtype, device=device,
    )  # fmt: skip
    return model


def save_pretrained(model: Transformer, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` (or shards) into a folder.

    Args:
        model: plain, or with linear maps on grids, which are written as compressed-tensors' int8 and int4.
        folder: made if absent.
        dtype: floating-point tensors are stored as this; None keeps the model's.

    Raises:
        ConfigError: the family's format cannot express the model.
        DiskFullError: the device is full.
    """
    folder, config = Path(folder), model.config
    row = family_named(config.family)
    hf = row.to_hf(config)
    state = own_state(model)
    rules = row.rules(config, quantization.plain_names(model, state))
    if config.head.kind == "embedding":  # files of the bare model have its names alone
        rules = without_prefix(rules, row.prefix)
    dtype = dtype or model.dtype
    state = {n: t.detach() for n, t in state.items()}
    if any(isinstance(m, QuantizedMatrix) for m in model.modules()):
        exported, hf["quantization_config"] = quantization.export_quantized(model, rules, state)
    else:
        exported = export_state(rules, state)
    # `dtype` is version 5's spelling, `torch_dtype` version 4's.
    hf |= dict.fromkeys(("dtype", "torch_dtype"), str(dtype).removeprefix("torch."))
    exported = {n: t.to(dtype) if t.is_floating_point() else t for n, t in exported.items()}
    generation = {
        "bos_token_id": config.bos_token_id, "eos_token_id": one_or_list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id, "decoder_start_token_id": config.decoder_start_token_id,
        "forced_bos_token_id": config.forced_bos_token_id,
    }  # fmt: skip
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / CONFIG, hf)
        _write_json(folder / GENERATION_CONFIG, {k: v for k, v in generation.items() if v is not None})
        write_safetensors(exported, folder)


def read_config(path: Path | str) -> ModelConfig:
    """The configuration of a model folder or GGUF file, without reading weights.

    End-of-text ids and the decoder's first token come from `generation_config.json` where it names them: chat models
    list theirs there, and version 5 of transformers keeps both nowhere else.

    Raises:
        ConfigError: it is impossible or needs what is not supported.
        CheckpointError: there is no model at `path`.
    """
    path = _model_path(path)
    if path.is_file():
        return config_from_gguf(open_gguf(path))
    hf = read_json(path / CONFIG)
    generation = read_json(path / GENERATION_CONFIG) if (path / GENERATION_CONFIG).is_file() else {}
    decisive = ("eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    hf |= {key: generation[key] for key in decisive if generation.get(key) is not None}
    return family_of(hf).config_from_hf(hf)


def verify_weights(folder: Path) -> None:
    """Compare the configuration and weight files with `lineage.json`, where there is one.

    Raises:
        CheckpointError: a file is not the one that the stage wrote.
    """
    if not (folder / MANIFEST).is_file():
        return
    recorded = load_manifest(folder).files
    for file in (folder / CONFIG, *weight_files(folder)):
        if recorded.get(file.name) != sha256(file):
            raise CheckpointError(
                f"{file} is not the file recorded in {MANIFEST}: it was changed or damaged after it was made",
                f"Make the artifact anew, or remove {MANIFEST} if you changed the file on purpose",
            )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: absent, unreadable or not an object.
    """
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}", "Give the path of a complete model folder") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {error}", "Restore the file") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not an object", "Restore the file")
    return loaded


def _model_path(path: Path | str) -> Path:
    """A model folder or a GGUF file; a folder that holds only one GGUF file stands for it."""
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
        raise CheckpointError(
            f"{path} is one file, not a whole model", "Give the path of its folder or of a .gguf file"
        )
    if not path.is_dir():
        raise CheckpointError(f"there is no model at {path}", "Give the path of a model folder or a .gguf file")
    files = sorted(path.glob("*.gguf"))
    if (path / CONFIG).is_file() or not files:
        return path
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {len(files)} models: {', '.join(f.name for f in files[:3])}", "Give the path of one of them"
        )
    return files[0]


def _load_gguf(file: GGUFFile, dtype: torch.dtype, device: torch.device | str, *, keep_quantized: bool) -> Transformer:
    config = config_from_gguf(file)
    model, quantized = _empty(config), GGUFSource(file)
    rules = expand(weight_rules(config), own_state(model), config.output_stack.num_hidden_layers)
    source: TensorSource = quantized
    if keep_quantized:
        rules, source = quantization.keep_grids(model, rules, quantized, dtype, device)
    fill(model, rules, source, dtype=dtype, device=device, tied=("output.weight",))
    return model


def _empty(config: ModelConfig) -> Transformer:
    try:
        with torch.device("meta"):
            return build_model(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # torch, of sizes beyond 64 bits
        raise ConfigError(
            f"the configuration asks for tensors beyond any memory: {str(error).partition(chr(10))[0]}",
            "Correct its sizes",
        ) from None


def _dtype(hf: Mapping[str, Any]) -> torch.dtype:
    """The stored type by either spelling; float32 when the configuration does not say."""
    name = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    if not isinstance(name, str) or name not in DTYPES:
        raise CheckpointError(f"config.json: dtype {name!r} is not supported", f"Known: {', '.join(DTYPES)}")
    return DTYPES[name]


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
