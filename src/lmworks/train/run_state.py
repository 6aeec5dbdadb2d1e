"""Everything that the next steps of a run depend on besides their numbers, as one flat mapping of tensors.

Names are those that one process gives, and tensors that are divided over a mesh are DTensors, so what one mesh saves
another takes up. Knows neither files nor the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, empty
from torch.distributed.tensor.placement_types import Placement

from lmworks.core.errors import CheckpointError
from lmworks.optim.averaging import WeightAverage
from lmworks.optim.optimizer import CompositeOptimizer
from lmworks.optim.param_groups import trainable
from lmworks.parallel.expert import ExpertShard
from lmworks.train.guard import StepGuard
from lmworks.train.loss_scaling import DynamicLossScale
from lmworks.train.saved_checkpoint import Checkpoint
from lmworks.train.sharded_state import Entry

Value = TypeVar("Value")

MODEL, OPTIMIZER, GUARD, AVERAGE, SCALE = "model.", "optimizer.", "guard.", "average.", "loss_scale."


@dataclass(frozen=True)
class Divided:
    """How a weight that is no DTensor is one part of a larger one."""

    name: str
    """Of the whole in one process."""
    mesh: DeviceMesh
    placements: Sequence[Placement]

    def whole(self, part: Tensor) -> Tensor:
        """The larger tensor, whose part the caller has; shares its memory."""
        return DTensor.from_local(part, self.mesh, self.placements, run_check=False)


def divided_experts(model: nn.Module) -> dict[str, Divided]:
    """What `parallelize_experts` divided, by the names it has now."""
    found: dict[str, Divided] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, ExpertShard):
            for name, parameter in module.local.named_parameters():
                mesh = DeviceMesh.from_group(module.group, parameter.device.type)
                found[f"{prefix}.local.{name}"] = Divided(f"{prefix}.{name}", mesh, [Shard(0)])
    return found


@dataclass(frozen=True)
class RunState:
    """The parts of a run that have a state."""

    model: nn.Module
    optimizer: CompositeOptimizer
    guard: StepGuard
    average: WeightAverage | None
    loss_scale: DynamicLossScale | None

    @cached_property
    def divided(self) -> Mapping[str, Divided]:
        """Parameters of which each rank has a part without their being DTensors, by the names they have here."""
        return divided_experts(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by prefixed names; those of model, optimizer and average are shared, not copied."""
        return {
            **self._in_place(),
            **{OPTIMIZER + self._slot(key)[0]: self._view(key, t) for key, t in self.optimizer.state_dict().items()},
            **{GUARD + name: tensor for name, tensor in self.guard.state_dict().items()},
            **{
                SCALE + name: tensor
                for name, tensor in (self.loss_scale.state_dict() if self.loss_scale else {}).items()
            },
        }

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint, *, passed_rows: int | None = None) -> None:
        """Take over what `state_dict` gave when the checkpoint was written, on this mesh or another.

        Weights and averages are read where they are; a rank reads what it holds and no more. All ranks call this.

        Args:
            checkpoint: of this run.
            passed_rows: a return from a bad step, not a resume: so many rows are left out from now on, and what the
                guard counted since the checkpoint stays counted.

        Raises:
            CheckpointError: it does not fit the model or the optimizer, or cannot be read.
        """
        entries = checkpoint.entries()
        optimizer = self._new_optimizer_state(part(entries, OPTIMIZER))
        rest = {n: torch.empty(e.shape, dtype=e.dtype) for n, e in entries.items() if n.startswith(self._plain)}
        slots = {OPTIMIZER + self._slot(key)[0]: self._view(key, tensor) for key, tensor in optimizer.items()}
        checkpoint.load_into({**self._in_place(), **slots, **rest})
        self.optimizer.load_state_dict(optimizer)
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(part(rest, SCALE))
        if passed_rows is None:
            self.guard.load_state_dict(part(rest, GUARD))
        else:
            self.guard.rewound(part(rest, GUARD), passed_rows)

    @property
    def _plain(self) -> tuple[str, ...]:
        """Prefixes of what is small and whole on every rank."""
        return (GUARD,) if self.loss_scale is None else (GUARD, SCALE)

    def _in_place(self) -> dict[str, Tensor]:
        """What is read where it is: weights and their average."""
        average = {} if self.average is None else self.average.state_dict()
        return {
            prefix + self._whole_name(name): self._divided(name, tensor)
            for prefix, tensors in ((MODEL, weights(self.model)), (AVERAGE, average))
            for name, tensor in tensors.items()
        }

    def _new_optimizer_state(self, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
        """Empty tensors for the saved state of the caller's parameters, by the optimizer's names.

        State of a parameter's shape is divided as the parameter is; other state is whole on every rank.
        """
        parameters = {self._whole_name(name): (name, p.detach()) for name, p in trainable(self.model)}
        found: dict[str, Tensor] = {}
        for key, entry in entries.items():
            whole, _, slot = key.rpartition(".")
            if whole in parameters:
                name, parameter = parameters[whole]
                found[f"{name}.{slot}"] = _like(parameter, self._divided(name, parameter).shape, entry)
        return found

    def _slot(self, key: str) -> tuple[str, str]:
        """`"<parameter>.<slot>"` with the parameter's name in one process, and its name here."""
        name, _, slot = key.rpartition(".")
        return f"{self._whole_name(name)}.{slot}", name

    def _view(self, key: str, tensor: Tensor) -> Tensor:
        """State as one process has it: of a parameter's shape, divided as the parameter is."""
        return self._divided(self._slot(key)[1], tensor) if tensor.ndim else tensor

    def _whole_name(self, name: str) -> str:
        return self.divided[name].name if name in self.divided else name

    def _divided(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.divided:
            return tensor
        parameter = self.model.get_parameter(name)
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"the optimizer's state of {name!r} is {list(tensor.shape)} for a part {list(parameter.shape)} of a "
                "divided weight, and cannot be put together",
                "Choose an optimizer whose state has the shape of the weights, with state_bits 32",
            )
        return self.divided[name].whole(tensor)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters and persistent buffers; frozen weights are input."""
    every_name = dict(model.named_parameters(remove_duplicate=False)).keys()
    buffers = {k: v for k, v in model.state_dict().items() if k not in every_name}
    return {name: tensor.detach() for name, tensor in (*trainable(model), *buffers.items())}


def part(state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """What has a name that begins with `prefix`, by the rest of it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _like(parameter: Tensor, whole: torch.Size, entry: Entry) -> Tensor:
    if entry.shape == whole:
        return torch.empty_like(parameter, dtype=entry.dtype)
    if isinstance(parameter, DTensor) and entry.shape:
        mesh = parameter.device_mesh
        return empty(entry.shape, dtype=entry.dtype, device_mesh=mesh, placements=[Replicate()] * mesh.ndim)
    return torch.empty(entry.shape, dtype=entry.dtype, device=parameter.device)
