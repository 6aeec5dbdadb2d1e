"""One optimizer over all roles: the chosen algorithm for what it takes, AdamW for the rest.

Its state is a flat mapping of tensors named after the parameters, which any checkpoint format can hold
and which does not depend on the order of parameters. Parameters may be divided among processes (DTensors): their state
then is too. Knows no model class, no schedule and no files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.optim.algorithms import ALGORITHMS, Algorithm, OptimizerConfig
from lmworks.optim.mup import learning_rate_multipliers
from lmworks.optim.offload import HOST, OffloadedState, travels
from lmworks.optim.param_groups import DECAYED, Role, parameter_roles, trainable
from lmworks.optim.quantized_state import QuantizedState, packed_slots
from lmworks.optim.shards import WholeParameters, divided_as, layout

__all__ = ["CompositeOptimizer", "OptimizerConfig"]


class CompositeOptimizer:
    """The optimizers of all roles behind one object.

    Args:
        model: its trainable parameters are updated in place.
        config: what updates them.

    Raises:
        ConfigError: nothing in the model is trainable, its learning rates cannot be scaled, or 8-bit state is asked
            for divided parameters.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._names = {id(parameter): name for name, parameter in trainable(model)}
        if not self._names:
            raise ConfigError("no parameter of the model requires a gradient", "Unfreeze some, or add an adapter")
        self._config = config
        roles, multipliers = parameter_roles(model), learning_rate_multipliers(model, config)
        chosen: dict[str, dict[tuple[Role, float, Hashable], list[nn.Parameter]]] = {}
        for name, parameter in trainable(model):
            alone = ALGORITHMS[config.kind].matrices_only and roles[name] != "matrix"
            groups = chosen.setdefault("adamw" if alone else config.kind, {})
            key = roles[name], multipliers.get(name, 1.0), layout(parameter)  # one call takes tensors of one mesh
            groups.setdefault(key, []).append(parameter)
        self._parts: list[tuple[Algorithm, torch.optim.Optimizer]] = [
            (
                ALGORITHMS[kind],
                ALGORITHMS[kind].build([_group(config, *key[:2], ps) for key, ps in groups.items()], config),
            )
            for kind, groups in sorted(chosen.items(), key=lambda item: item[0] != config.kind)
        ]
        self.optimizers = [optimizer for _, optimizer in self._parts]
        self._steppers = [self._stepper(algorithm, optimizer) for algorithm, optimizer in self._parts]
        self._peaks = [group["lr"] for group in self._groups()]

    def step(self, factor: float) -> None:
        """Update every parameter from its `.grad`, at `factor` times the peak learning rates."""
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * factor
        for stepper in self._steppers:
            stepper.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """`"<parameter name>.<slot>"` to tensor; shared, not copied. Empty before the first step."""
        return {
            f"{self._names[id(parameter)]}.{slot}": value
            for optimizer in self.optimizers
            for parameter, slots in optimizer.state.items()
            for slot, value in slots.items()
            if value is not None  # SGD without momentum notes that it has none
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; tensors on the device of their parameter are used, not copied.

        State of the shape of its parameter may be given whole, and is divided as the parameter is. Parameters without
        any begin anew: no gradient had reached them.

        Raises:
            CheckpointError: the state is of another optimizer or other parameters.
        """
        if not state:
            for optimizer in self.optimizers:
                optimizer.state.clear()
            return
        slots: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, slot = key.rpartition(".")
            slots.setdefault(name, {})[slot] = value
        if odd := sorted(set(slots) - set(self._names.values())):
            raise CheckpointError(
                f"the optimizer state is of {len(odd)} parameters that the model lacks, among them {odd[0]!r}",
                "Resume with the model and optimizer that the run was started with",
            )
        for algorithm, optimizer in self._parts:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self._names[id(parameter)]
                    if name not in slots:
                        optimizer.state.pop(parameter, None)
                        continue
                    found, expected = slots[name], self._slots(algorithm, parameter)
                    if set(found) != expected:
                        raise CheckpointError(
                            f"the state of {name!r} has {sorted(found)}, not {sorted(expected)}",
                            "Resume with the optimizer that the run was started with",
                        )
                    optimizer.state[parameter] = {
                        slot: divided_as(value.to(self._home(value, parameter)), parameter)
                        for slot, value in found.items()
                    }

    def _stepper(
        self, algorithm: Algorithm, optimizer: torch.optim.Optimizer
    ) -> torch.optim.Optimizer | QuantizedState | OffloadedState | WholeParameters:
        if self._config.state_bits == 8:
            return QuantizedState(optimizer)
        divided = any(layout(p) is not None for group in optimizer.param_groups for p in group["params"])
        if self._config.offload_state and divided:
            raise ConfigError(
                "offload_state needs whole parameters, and these are divided among processes",
                "Set `parallel.cpu_offload` instead",
            )
        if self._config.offload_state:
            return OffloadedState(optimizer)
        return WholeParameters(optimizer) if divided and not algorithm.entrywise else optimizer

    def _home(self, value: Tensor, parameter: nn.Parameter) -> torch.device:
        """Where a state tensor is between steps."""
        return HOST if self._config.offload_state and travels(value) else parameter.device

    def _slots(self, algorithm: Algorithm, parameter: nn.Parameter) -> frozenset[str]:
        slots = algorithm.slots(parameter, self._config)
        return packed_slots(parameter, slots) if self._config.state_bits == 8 else slots

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)


def _group(config: OptimizerConfig, role: Role, multiplier: float, parameters: list[nn.Parameter]) -> dict[str, Any]:
    """Decay is divided by the multiplier, so that learning rate times decay is the same at every width."""
    own = role == "matrix" or (role == "experts" and not ALGORITHMS[config.kind].matrices_only)
    peak = config.peak_matrix_lr if own else config.lr
    decay = config.weight_decay / multiplier if role in DECAYED else 0.0
    return {"params": parameters, "lr": peak * multiplier, "weight_decay": decay}
