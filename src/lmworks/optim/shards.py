"""Parameters of which each process holds a part (DTensors), as an optimizer sees them. Knows no algorithm and no mesh.

What acts on each number alone works on the parts. What needs a whole matrix (Newton-Schulz iterations, preconditioners,
norms of parameters) gets it gathered for the time of its update.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def part(tensor: Tensor) -> Tensor:
    """The caller's part, sharing memory; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All parts together, the same on every process; a collective for a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_as(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of the parameter's shape, in parts as the parameter; anything else as it is. No communication."""
    if not isinstance(parameter, DTensor) or isinstance(tensor, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def layout(parameter: Tensor) -> Hashable:
    """Parameters of equal layout can be updated by one call for many tensors."""
    return (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None


class WholeParameters:
    """An optimizer that sees each parameter whole, one at a time, while parameter and state stay divided.

    Every process computes the same update of the whole and keeps its part. Parameters that are not divided are
    updated together as ever.

    Args:
        optimizer: updates each parameter independently of the others.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        """Update all parameters from their `.grad`; every process calls it."""
        groups = self.optimizer.param_groups
        try:
            for group in groups:
                self._update(group, [p for p in group["params"] if not isinstance(p, DTensor)])
                for parameter in group["params"]:
                    if isinstance(parameter, DTensor) and parameter.grad is not None:
                        self._update_divided(group, parameter)
        finally:
            self.optimizer.param_groups = groups

    def _update(self, group: dict[str, Any], parameters: Iterable[Tensor]) -> None:
        self.optimizer.param_groups = [{**group, "params": list(parameters)}]
        self.optimizer.step()

    @torch.no_grad()
    def _update_divided(self, group: dict[str, Any], parameter: DTensor) -> None:
        assert parameter.grad is not None, "asked by the caller"
        stand_in = nn.Parameter(whole(parameter.detach()))
        stand_in.grad = whole(parameter.grad)
        state: Any = self.optimizer.state  # keyed by parameters
        state[stand_in] = {slot: whole(value) for slot, value in state.pop(parameter, {}).items()}
        self._update(group, [stand_in])
        part(parameter).copy_(part(divided_as(stand_in.detach(), parameter)))
        state[parameter] = {slot: divided_as(value, parameter) for slot, value in state.pop(stand_in).items()}
