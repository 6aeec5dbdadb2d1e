"""Adapters put into a model and taken out of it. Knows layers by their names, no model class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from lmworks.adapters.lora import LoraConfig, LoraLinear
from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError

Model = TypeVar("Model", bound=nn.Module)

HEAD = "lm_head"


def inject_lora(model: Model, config: LoraConfig, *, seed: int | None = None) -> Model:
    """Freeze a model and adapt its linear layers, in place.

    Args:
        model: any module; layers are found by the end of their name.
        config: which layers, and how.
        seed: makes the adapters' first values reproducible.

    Returns:
        The same model; only adapters require gradients.

    Raises:
        ConfigError: a target names no linear layer, or the model has adapters already.
    """
    return inject_at(model, target_names(model, config.target_modules), config, seed=seed)


def inject_at(model: Model, names: Sequence[str], config: LoraConfig, *, seed: int | None = None) -> Model:
    """`inject_lora` at exactly these layers."""
    if lora_modules(model):
        raise ConfigError("the model has adapters already", "Call merge_and_unload first")
    model.requires_grad_(False)
    generator = None if seed is None else torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), f"{name} is not a linear layer"
        _replace(model, name, LoraLinear(layer, config, generator))
    return model


def target_names(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers that `target_modules` selects, in the model's order.

    Raises:
        ConfigError: a target selects nothing.
    """
    linear = linear_names(model)
    if isinstance(targets, str):
        assert targets == "all-linear", f"unknown selection {targets!r}"
        return [n for n in linear if n.rpartition(".")[2] != HEAD]
    for target in targets:
        if not any(_matches(name, target) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"target_modules: {target!r} names no linear layer{nearest(target, known)}", "Fix the name"
            )
    return [n for n in linear if any(_matches(n, target) for target in targets)]


def linear_names(model: nn.Module) -> list[str]:
    """Full names of every linear layer."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def lora_modules(model: nn.Module) -> dict[str, LoraLinear]:
    """Adapted layers by the names they had."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def merge_and_unload(model: Model) -> Model:
    """Add every adapter into its layer's weight and put the layer back, in place; all weights are trainable again."""
    for name, module in lora_modules(model).items():
        _replace(model, name, module.merged())
    return model.requires_grad_(True)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module.train(model.training))
