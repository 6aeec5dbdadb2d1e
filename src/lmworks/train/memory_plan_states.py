"""Bytes of optimizer states by closed form, for parameters that do not exist yet. Knows no memory to fit them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lmworks.optim.algorithms import ALGORITHMS, OptimizerConfig
from lmworks.optim.param_groups import parameter_roles, trainable
from lmworks.optim.quantized_state import BLOCK, packed_slots
from lmworks.optim.soap import SIDES

Shape = tuple[int, ...]

_NUMBERS: Mapping[str, Callable[[Shape], int]] = {
    "step": lambda shape: 1,
    "row_var": lambda shape: math.prod(shape[:-1]),
    "col_var": lambda shape: math.prod(shape) // shape[-2],
    **{side: lambda shape, i=i: shape[i] ** 2 for i, side in enumerate(SIDES)},  # type: ignore[misc]  # default binds i
    **{f"{side}_basis": lambda shape, i=i: shape[i] ** 2 for i, side in enumerate(SIDES)},  # type: ignore[misc]
}
"""Float32 numbers of a slot; those not named here have the parameter's shape."""


def optimizer_bytes(model: nn.Module, config: OptimizerConfig, shapes: Mapping[str, Shape] | None = None) -> int:
    """Bytes that an optimizer keeps from its first update on.

    Args:
        model: its trainable parameters; may be on the meta device.
        config: the optimizer.
        shapes: of the parts that a rank has, by name; by default all parameters' own.
    """
    roles = parameter_roles(model)
    total = 0
    for name, parameter in trainable(model):
        if shapes is not None and name not in shapes:
            continue
        alone = ALGORITHMS[config.kind].matrices_only and roles[name] != "matrix"
        slots = ALGORITHMS["adamw" if alone else config.kind].slots(parameter, config)
        if config.state_bits == 8:
            slots = packed_slots(parameter, slots)
        shape = tuple(parameter.shape) if shapes is None else shapes[name]
        total += sum(_slot_bytes(slot, shape) for slot in slots)
    return total


def _slot_bytes(slot: str, shape: Shape) -> int:
    if slot.endswith("_codes"):
        return math.prod(shape)
    if slot.endswith("_scales"):
        return 4 * -(-math.prod(shape) // BLOCK)
    size: Any = _NUMBERS.get(slot, math.prod)
    return 4 * int(size(shape))
