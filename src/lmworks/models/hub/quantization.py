"""int8 weights in a Hugging Face folder: the compressed-tensors description and the rules that read it.

Weight-only integers are written as `pack-quantized`: readers derive the layout from the scheme and ignore any
other declared format. Knows no algorithm; `compress` quantizes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.hub.rules import Rule, Shape
from lmworks.models.transformer import Transformer
from lmworks.nn.moe import MixtureOfExperts
from lmworks.nn.quantized import QuantizedLinear, pack_int32, unpack_int32

HEAD = "lm_head"
"""Name of the head, ours and theirs; it stays floating point."""
_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


@dataclass(frozen=True)
class Packed:
    """`weight_packed` and `weight_shape` of theirs are one int8 matrix of ours."""

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        packed, shape = tensors
        if tuple(shape.tolist()) != tuple(shapes[0]):
            raise CheckpointError(
                f"a weight_shape says {shape.tolist()} where the configuration has {list(shapes[0])}",
                "Restore the config.json that belongs to these weights",
            )
        return [unpack_int32(packed, shapes[0][1], 8)]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        (weight,) = tensors
        return [pack_int32(weight, 8), torch.tensor(weight.shape, dtype=torch.int64)]


def describe(ignore: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a model whose linear maps are int8 except `ignore` (their names)."""
    group = {"targets": ["Linear"], "weights": {**_WEIGHTS, "group_size": None, "dynamic": False}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }


def read_ignore(hf: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names and `re:` patterns of linear maps left alone; None when the model is not quantized.

    Raises:
        ConfigError: quantized in a way that is not supported.
    """
    described = hf.get("quantization_config")
    if described is None:
        return None
    try:
        groups = list(described["config_groups"].values())
        weights = groups[0]["weights"]
        supported = (
            described["quant_method"] == "compressed-tensors"
            and described["format"] == "pack-quantized"
            and len(groups) == 1
            and groups[0]["targets"] == ["Linear"]
            and groups[0].get("input_activations") is None
            and described.get("kv_cache_scheme") is None
            and {k: weights.get(k) for k in _WEIGHTS} == _WEIGHTS
        )
    except (KeyError, TypeError, AttributeError, IndexError):
        supported = False
    if not supported:
        raise ConfigError(
            "config.json: this quantization_config is not supported "
            f"(quant_method {described.get('quant_method')!r}, format {described.get('format')!r})"
            if isinstance(described, dict) else "config.json: quantization_config is not a mapping",
            "Read are compressed-tensors pack-quantized int8 weights, symmetric, one scale per output channel",
        )  # fmt: skip
    return tuple(described.get("ignore") or ())


def linear_names(model: Transformer, rules: Sequence[Rule]) -> dict[str, str]:
    """Every linear map that has a matrix of its own: our module name to theirs.

    Raises:
        ConfigError: the family stores a linear map fused or transposed, which this format cannot express, or has
            experts.
    """
    if any(isinstance(module, MixtureOfExperts) for module in model.modules()):
        raise ConfigError(
            f"models of the family {model.config.family!r} cannot be stored in int8: their experts are stacked here",
            "Quantize a dense model",
        )
    stored = {rule.ours[0]: rule for rule in rules}
    names: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | QuantizedLinear):
            continue
        if name == HEAD and model.tied:
            continue
        rule = stored.get(f"{name}.weight")
        if rule is None or len(rule.ours) > 1 or rule.operations:
            raise ConfigError(
                f"models of the family {model.config.family!r} cannot be stored in int8: their {name!r} is not a "
                "plain Linear on disk",
                "Quantize a model of a family that stores each linear map by itself, such as llama or qwen3",
            )
        names[name] = rule.theirs[0].removesuffix(".weight")
    return names


def ignored(theirs: str, ignore: Sequence[str]) -> bool:
    """Whether a module name of theirs is left alone: equal to an entry, or matched by a `re:` pattern."""
    return any(re.match(e[3:], theirs) if e.startswith("re:") else e == theirs for e in ignore)


def pack_rules(rules: Sequence[Rule], modules: Collection[str]) -> tuple[Rule, ...]:
    """The rules with the weights of `modules` (ours) stored packed, their scales beside them."""
    packed: list[Rule] = []
    for rule in rules:
        module = rule.ours[0].removesuffix(".weight")
        if not rule.ours[0].endswith(".weight") or module not in modules:
            packed.append(rule)
            continue
        theirs = rule.theirs[0]
        packed.append(Rule(rule.ours, (f"{theirs}_packed", f"{theirs}_shape"), (Packed(),)))
        packed.append(Rule((f"{module}.weight_scale",), (f"{theirs}_scale",)))
    return tuple(packed)


def replace_linears(model: Transformer, names: Collection[str]) -> None:
    """Put an empty `QuantizedLinear` in place of each named linear map, on the same device."""
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with linear.weight.device:
            empty = QuantizedLinear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        model.set_submodule(name, empty)
