"""One optimizer over all roles: Muon or AdamW for the hidden matrices, AdamW for the rest.

Its state is a flat mapping of tensors named after the parameters, which any checkpoint format can hold
and which does not depend on the order of parameters. Knows no model class, no schedule and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmworks.core.config import Config
from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.optim.param_groups import Role, parameter_roles, trainable

Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """What updates the weights."""

    kind: Literal["adamw", "muon"] = "muon"
    """`muon` (Jordan et al., 2024) takes the hidden matrices and leaves embeddings, head, norms and
    biases to AdamW (arXiv:1711.05101); `adamw` takes everything."""
    lr: Rate = 3e-3
    """Peak learning rate of AdamW."""
    matrix_lr: Rate | None = None
    """Peak learning rate of the hidden matrices; by default 0.02 under Muon and `lr` under AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    eps: Rate = 1e-8
    momentum: Beta = 0.95
    """Muon's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled; applies to matrices and an untied head, never to embeddings, norms and biases."""

    @property
    def peak_matrix_lr(self) -> float:
        """The peak learning rate of the hidden matrices."""
        return self.matrix_lr or (0.02 if self.kind == "muon" else self.lr)


class CompositeOptimizer:
    """The optimizers of all roles behind one object.

    Args:
        model: its trainable parameters are updated in place.
        config: what updates them.

    Raises:
        ConfigError: nothing in the model is trainable.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._names = {id(parameter): name for name, parameter in trainable(model)}
        by_role: dict[Role, list[nn.Parameter]] = {}
        roles = parameter_roles(model)
        for name, parameter in trainable(model):
            by_role.setdefault(roles[name], []).append(parameter)
        if not by_role:
            raise ConfigError("no parameter of the model requires a gradient", "Unfreeze some, or add an adapter")
        matrices = by_role.pop("matrix", []) if config.kind == "muon" else []
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(
                torch.optim.Muon(
                    matrices, lr=config.peak_matrix_lr, momentum=config.momentum, weight_decay=config.weight_decay
                )
            )
        if by_role:
            groups = [
                {
                    "params": parameters,
                    "lr": config.peak_matrix_lr if role == "matrix" else config.lr,
                    "weight_decay": config.weight_decay if role in ("matrix", "head") else 0.0,
                }
                for role, parameters in by_role.items()
            ]
            self.optimizers.append(
                torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
            )
        self._peaks = [group["lr"] for group in self._groups()]

    def step(self, factor: float) -> None:
        """Update every parameter from its `.grad`, at `factor` times the peak learning rates."""
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * factor
        for optimizer in self.optimizers:
            optimizer.step()

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
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; the tensors are used, not copied.

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
        if set(slots) != set(self._names.values()):
            odd = sorted(set(slots) ^ set(self._names.values()))
            raise CheckpointError(
                f"the optimizer state and the model differ in {len(odd)} parameters, among them {odd[0]!r}",
                "Resume with the model and optimizer that the run was started with",
            )
        for optimizer in self.optimizers:
            expected = {"momentum_buffer"} if isinstance(optimizer, torch.optim.Muon) else _ADAMW_SLOTS
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    found = slots[self._names[id(parameter)]]
                    if set(found) != expected:
                        raise CheckpointError(
                            f"the state of {self._names[id(parameter)]!r} has {sorted(found)}, not {sorted(expected)}",
                            "Resume with the optimizer that the run was started with",
                        )
                    optimizer.state[parameter] = found

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)


_ADAMW_SLOTS = {"step", "exp_avg", "exp_avg_sq"}
