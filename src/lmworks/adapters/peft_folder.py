"""LoRA adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

How our layer names read in the Hugging Face model is passed in as a function. Knows no model class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmworks.adapters.inject import inject_at, linear_names, lora_modules
from lmworks.adapters.lora import LoraConfig
from lmworks.core.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Rename = Callable[[str], str]

_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
}
"""Fields of PEFT's configuration whose other values mean weights that a plain LoRA does not have."""


def _same(name: str) -> str:
    return name


def save_adapter(
    model: nn.Module, config: LoraConfig, folder: Path | str, *, rename: Rename = _same, base_model: str | None = None
) -> None:
    """Write the adapters of a model as a PEFT folder.

    Args:
        model: a model that `inject_lora` has adapted.
        config: what it was adapted with.
        folder: created if it is not there.
        rename: our layer name to the Hugging Face model's.
        base_model: where PEFT finds the base model.
    """
    modules = {rename(name): module for name, module in lora_modules(model).items()}
    assert modules, "the model has no adapters to save"
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for part in ("lora_A", "lora_B"):
            weight = module.get_submodule(part).get_parameter("weight")
            tensors[f"{PREFIX}{name}.{part}.weight"] = weight.detach().to("cpu").contiguous()
    by_full_name = not isinstance(config.target_modules, str) and any("." in t for t in config.target_modules)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "bias": "none",
        **config.to_dict(),
        "target_modules": sorted(modules) if by_full_name else sorted({n.rpartition(".")[2] for n in modules}),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_adapter(folder: Path | str) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read a PEFT folder, whatever model it is for.

    Returns:
        The adapter's configuration; A [r, in] and B [out, r] of each layer, under PEFT's names.

    Raises:
        CheckpointError: the folder cannot be read, or is no plain LoRA.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / WEIGHTS}: {error}", "Restore the adapter folder") from None
    adapted = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    expected = {f"{place}.{part}.weight" for place in adapted for part in ("lora_A", "lora_B")}
    for place in adapted:  # PEFT also saves the frozen matrix of a head that it adapts
        tensors.pop(f"{place}.base_layer.weight", None)
    faults = [f"unexpected {key}" for key in sorted(set(tensors) - expected)]
    faults += [f"missing {key}" for key in sorted(expected - set(tensors))]
    if not adapted:
        faults.append("no LoRA weights")
    if faults:
        raise CheckpointError(f"{folder / WEIGHTS} is no plain LoRA: {some(faults)}", "Save the adapter with PEFT")
    return config, tensors


def load_adapter(model: nn.Module, folder: Path | str, *, rename: Rename = _same) -> LoraConfig:
    """Put the adapters of a PEFT folder into a model, in place.

    Args:
        model: without adapters.
        folder: as PEFT or `save_adapter` wrote it.
        rename: our layer name to the Hugging Face model's.

    Returns:
        The adapter's configuration.

    Raises:
        CheckpointError: the folder cannot be read, is no plain LoRA, or does not fit the model.
    """
    folder = Path(folder)
    config, tensors = read_adapter(folder)
    ours = {f"{PREFIX}{rename(name)}": name for name in linear_names(model)}
    adapted = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    faults = [f"no layer {place.removeprefix(PREFIX)} in the model" for place in sorted(adapted - set(ours))]
    for place in sorted(adapted & set(ours)):
        layer = model.get_submodule(ours[place])
        assert isinstance(layer, nn.Linear)
        for part, shape in (("lora_A", (config.r, layer.in_features)), ("lora_B", (layer.out_features, config.r))):
            found = tensors.get(f"{place}.{part}.weight")
            if found is not None and tuple(found.shape) != shape:
                faults.append(f"{place}.{part} has shape {tuple(found.shape)}, the model needs {shape}")
    if faults:
        raise CheckpointError(f"the adapter {folder} does not fit: {some(faults)}", "Use the model it was trained on")
    names = [name for place, name in ours.items() if place in adapted]
    config = config.model_copy(update={"target_modules": tuple(names)})  # the folder may name them by a pattern
    inject_at(model, names, config)
    with torch.no_grad():
        for name, module in lora_modules(model).items():
            module.lora_A.weight.copy_(tensors[f"{PREFIX}{rename(name)}.lora_A.weight"])
            module.lora_B.weight.copy_(tensors[f"{PREFIX}{rename(name)}.lora_B.weight"])
    return config


def some(faults: Sequence[str]) -> str:
    """The first few, for a message."""
    return "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")


def _read_config(file: Path) -> LoraConfig:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}", "Give a PEFT adapter folder") from None
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise CheckpointError(f"{file} does not describe a LoRA adapter", "Give a PEFT folder of type LORA")
    for field, allowed in _REQUIRED.items():
        if field in values and values[field] not in allowed:
            raise CheckpointError(
                f"{file}: {field} = {values[field]!r} is not supported", "Merge the adapter with PEFT"
            )
    return LoraConfig.parse(
        {name: values[name] for name in ("r", "lora_alpha", "lora_dropout", "use_rslora") if name in values}
    )
