"""Everything that the next steps of a run depend on besides their numbers, as one flat mapping of tensors.

Knows neither files nor the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError
from lmworks.optim.averaging import WeightAverage
from lmworks.optim.optimizer import CompositeOptimizer
from lmworks.optim.param_groups import trainable
from lmworks.train.guard import StepGuard
from lmworks.train.loss_scaling import DynamicLossScale

MODEL, OPTIMIZER, GUARD, AVERAGE, SCALE = "model.", "optimizer.", "guard.", "average.", "loss_scale."


@dataclass(frozen=True)
class RunState:
    """The parts of a run that have a state."""

    model: nn.Module
    optimizer: CompositeOptimizer
    guard: StepGuard
    average: WeightAverage | None
    loss_scale: DynamicLossScale | None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by prefixed names; those of model, optimizer and average are shared, not copied."""
        parts: dict[str, Mapping[str, Tensor]] = {
            MODEL: self._weights(),
            OPTIMIZER: self.optimizer.state_dict(),
            GUARD: self.guard.state_dict(),
            AVERAGE: {} if self.average is None else self.average.state_dict(),
            SCALE: {} if self.loss_scale is None else self.loss_scale.state_dict(),
        }
        return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], *, passed_rows: int | None = None) -> None:
        """Take over what `state_dict` gave.

        Args:
            state: of a checkpoint.
            passed_rows: a return from a bad step, not a resume: so many rows are left out from now on, and what the
                guard counted since the checkpoint stays counted.

        Raises:
            CheckpointError: it does not fit the model or the optimizer.
        """
        saved = part(state, MODEL)
        for name, tensor in self._weights().items():
            if name not in saved or saved[name].shape != tensor.shape:
                raise CheckpointError(f"the checkpoint does not fit the model at {name!r}", "Start the run anew")
            tensor.copy_(saved[name])
        self.optimizer.load_state_dict(part(state, OPTIMIZER))
        if self.average is not None:
            self.average.load_state_dict(part(state, AVERAGE))
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(part(state, SCALE))
        if passed_rows is None:
            self.guard.load_state_dict(part(state, GUARD))
        else:
            self.guard.rewound(part(state, GUARD), passed_rows)

    def _weights(self) -> dict[str, Tensor]:
        """What training changes: trainable parameters and persistent buffers; frozen weights are input."""
        every_name = dict(self.model.named_parameters(remove_duplicate=False)).keys()
        buffers = {k: v for k, v in self.model.state_dict().items() if k not in every_name}
        return {name: tensor.detach() for name, tensor in (*trainable(self.model), *buffers.items())}


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
