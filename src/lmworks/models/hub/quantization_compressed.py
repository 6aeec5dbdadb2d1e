"""The compressed-tensors format: integers packed or plain and 8-bit floating point, by `config_groups`; also written.

Weight-only integers are written as `pack-quantized`: readers derive the layout from the scheme and ignore any other
declared format. Activations are not quantized here, whatever a scheme says of them. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.hub.quantization_fp8 import scaled
from lmworks.models.hub.quantization_source import (
    WEIGHT,
    GridKind,
    QuantizedSource,
    is_sorted_by_group,
    without_idle_zero,
)
from lmworks.models.hub.rules import Shape
from lmworks.models.hub.tensor_source import TensorSource
from lmworks.nn.quantized import QuantizedWeight, pack_int32, unpack_int32

METHOD = "compressed-tensors"
PACKED, SHAPE, SCALE, ZERO, ORDER = (f".weight_{part}" for part in ("packed", "shape", "scale", "zero_point", "g_idx"))


@dataclass(frozen=True)
class Scheme:
    """How the weights of some modules are stored."""

    targets: tuple[str, ...]
    kind: str
    """`int` or `float`."""
    bits: int
    group_size: int
    """0 without groups."""
    block: tuple[int, int] | None


class CompressedSource(QuantizedSource):
    """Weights as compressed-tensors writes them.

    Args:
        source: the tensors as stored.
        config: the `quantization_config`.

    Raises:
        ConfigError: a scheme that is not read.
    """

    parts = (PACKED, SHAPE, SCALE, ZERO, ORDER)

    def __init__(self, source: TensorSource, config: Mapping[str, Any]) -> None:
        self._schemes = _schemes(config)
        super().__init__(source)

    def _modules(self, names: Collection[str]) -> Iterable[str]:
        packed = {name.removesuffix(PACKED) for name in names if name.endswith(PACKED)}
        return packed | {
            module for n in names if n.endswith(SCALE) and f"{(module := n.removesuffix(SCALE))}{WEIGHT}" in names
        }

    def _shape(self, module: str) -> Shape:
        if not self._has(module, PACKED):
            return self._part_shape(module, WEIGHT)
        packed, bits = self._part_shape(module, PACKED), self._scheme(module).bits
        shape = tuple(int(n) for n in self._part(module, SHAPE))
        if len(shape) != 2 or packed != (shape[0], -(-shape[1] * bits // 32)):
            raise CheckpointError(
                f"{self.name}: a weight_shape of {module} says {list(shape)}, and {list(packed)} words of {32 // bits} "
                "weights are stored",
                "Restore the config.json that belongs to these weights",
            )
        return shape

    def _kind(self, module: str) -> GridKind | None:
        scheme = self._scheme(module)
        if scheme.kind == "float":
            return None
        group_size = self._groups(module)
        if self._has(module, ORDER) and not is_sorted_by_group(self._part(module, ORDER), group_size):
            return None
        bits = scheme.bits if self._has(module, PACKED) else 8
        zero = self._zero(module)
        return GridKind(bits, group_size, zero is not None and bool((zero != (8 if bits == 4 else 0)).any()))

    def _grid(self, module: str) -> QuantizedWeight:
        values, bits = self._values(module)
        group_size, zero = self._groups(module), self._zero(module)
        scale = self._scales(module)
        if zero is None:
            return QuantizedWeight(values, scale, None, bits, group_size)
        return without_idle_zero(values, scale, zero, bits, group_size)

    def _dequantized(self, module: str) -> Tensor:
        scheme = self._scheme(module)
        if scheme.kind == "float":
            scale = self._part(module, SCALE)
            return scaled(self._part(module, WEIGHT), scale, scheme.block, f"{self.name}: {module}")
        if not self._has(module, ORDER):
            return super()._dequantized(module)
        (values, bits), group = self._values(module), self._part(module, ORDER).long()
        scale, zero = self._scales(module), self._zero(module)
        if len(group) != values.shape[1] or not 0 <= int(group.min()) <= int(group.max()) < scale.shape[1]:
            raise CheckpointError(f"{self.name}: {module}{ORDER} does not fit its scales", "Restore the original files")
        middle = (8 if bits == 4 else 0) if zero is None else zero[:, group]
        return (values.float() - middle) * scale[:, group].float()

    def _values(self, module: str) -> tuple[Tensor, int]:
        """[out, in] as in `QuantizedWeight`, and their bits."""
        if self._has(module, PACKED):
            bits = self._scheme(module).bits
            return unpack_int32(self._part(module, PACKED), self._shape(module)[1], bits), bits
        values = self._part(module, WEIGHT)
        if values.dtype != torch.int8:
            raise CheckpointError(
                f"{self.name}: {module}{WEIGHT} is {str(values.dtype).removeprefix('torch.')}, where its scheme says "
                "integers",
                "Restore the config.json that belongs to these weights",
            )
        return values, 8

    def _scales(self, module: str) -> Tensor:
        """[out, groups] as stored."""
        scale, out = self._part(module, SCALE), self._shape(module)[0]
        scale = scale.reshape(1, 1).expand(out, 1) if scale.numel() == 1 else scale.reshape(out, -1)
        return scale.contiguous()

    def _zero(self, module: str) -> Tensor | None:
        """[out, groups] float32 in units of the values; None where the scheme is symmetric."""
        if not self._has(module, ZERO):
            return None
        stored, out, bits = self._part(module, ZERO), self._shape(module)[0], self._scheme(module).bits
        packed = self._has(module, PACKED)
        if packed and stored.dtype == torch.int32:  # packed along the rows
            zero = unpack_int32(stored.T, out, bits).T.float()
        else:
            zero = stored.float() + (8 if packed and bits == 4 else 0)
            zero = zero.reshape(1, 1).expand(out, 1) if zero.numel() == 1 else zero.reshape(out, -1)
        return zero.contiguous()

    def _groups(self, module: str) -> int:
        scale = self._part_shape(module, SCALE)
        groups = scale[1] if len(scale) == 2 else 1
        return self._group_size(module, self._shape(module)[1], groups, self._scheme(module).group_size)

    def _scheme(self, module: str) -> Scheme:
        named = [s for s in self._schemes if any(matches(module, t) for t in s.targets)]
        general = [s for s in self._schemes if "Linear" in s.targets]
        if not named and not general:
            raise ConfigError(
                f"{self.name}: no config group of the quantization_config names {module}, which is quantized",
                "Restore the config.json that belongs to these weights",
            )
        return (named or general)[0]


def matches(name: str, target: str) -> bool:
    """Whether a module's name (theirs) is meant by an entry of `targets` or `ignore`: a name, or `re:` and a pattern.

    Raises:
        ConfigError: the pattern is none.
    """
    if not target.startswith("re:"):
        return name == target
    try:
        return re.match(target[3:], name) is not None
    except re.error as error:
        raise ConfigError(f"{target!r} is no regular expression: {error}", "Correct it") from None


def _schemes(config: Mapping[str, Any]) -> tuple[Scheme, ...]:
    for feature in ("sparsity_config", "transform_config"):
        wanted = config.get(feature)
        if wanted and not (isinstance(wanted, Mapping) and wanted.get("format", "") == "dense"):
            raise ConfigError(f"config.json: quantization_config.{feature} is not supported", "Use another checkpoint")
    try:
        return tuple(_scheme(group) for group in config["config_groups"].values() if group.get("weights"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"config.json: the config_groups of its quantization_config cannot be read: {error!r}",
            "Restore the original config.json",
        ) from None


def _scheme(group: Mapping[str, Any]) -> Scheme:
    weights = group["weights"]
    kind, bits, strategy = weights.get("type", "int"), weights["num_bits"], weights.get("strategy")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)) or strategy not in (
        None, "tensor", "channel", "group", "block",
    ):  # fmt: skip
        raise ConfigError(
            f"config.json: quantized weights of {bits} bits, type {kind!r}, strategy {strategy!r} are not supported",
            "Read are int of 4 and 8 bits and float of 8 bits, by tensor, channel, group or block",
        )
    if (kind, strategy) == ("int", "block"):
        raise ConfigError("config.json: integers with scales by block are not supported", "Use scales by group")
    block = weights.get("block_structure")
    if isinstance(block, str):  # as earlier versions wrote it: "128x128"
        block = block.split("x")
    size = weights.get("group_size") or 0
    targets = tuple(str(t) for t in group["targets"])
    return Scheme(targets, kind, bits, max(int(size), 0), None if block is None else (int(block[0]), int(block[1])))


def describe(kinds: Mapping[str, GridKind], ignore: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config` of a model whose linear maps are on grids.

    Args:
        kinds: of each quantized module, by its name on disk.
        ignore: names of the linear maps that are not.
    """
    groups: dict[str, Any] = {}
    distinct = list(dict.fromkeys(kinds.values()))
    for i, kind in enumerate(distinct):
        weights = {
            "num_bits": kind.bits, "type": "int", "symmetric": not kind.zero, "dynamic": False,
            "strategy": "group" if kind.group_size else "channel", "group_size": kind.group_size or None,
        }  # fmt: skip
        named = [name for name, one in kinds.items() if one == kind]
        groups[f"group_{i}"] = {"targets": ["Linear"] if len(distinct) == 1 else named, "weights": weights}
    return {
        "quant_method": METHOD,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }


def packed(module: str, grid: QuantizedWeight) -> dict[str, Tensor]:
    """A matrix's tensors as `pack-quantized` stores them.

    Raises:
        ConfigError: its zero points are no whole numbers of its bits, or its last group is shorter.
    """
    columns, zero = grid.values.shape[1], grid.zero
    low = 0 if grid.bits == 4 else -128
    whole = zero is None or bool(((zero == zero.round()) & (zero >= low) & (zero < low + (1 << grid.bits))).all())
    if not whole or (grid.group_size and columns % grid.group_size):
        what = f"groups of {grid.group_size} in {columns} columns" if whole else "fractional zero points"
        raise ConfigError(
            f"compressed-tensors cannot express the {what} of {module}",
            "Load the model with keep_quantized=False and save that",
        )
    tensors = {
        f"{module}{PACKED}": pack_int32(grid.values, grid.bits),
        f"{module}{SHAPE}": torch.tensor(grid.values.shape, dtype=torch.int64),
        f"{module}{SCALE}": grid.scale,
    }
    if zero is not None:
        stored = zero.to(torch.uint8 if grid.bits == 4 else torch.int8)
        tensors[f"{module}{ZERO}"] = pack_int32(stored.T.contiguous(), grid.bits).T.contiguous()
    return tensors
