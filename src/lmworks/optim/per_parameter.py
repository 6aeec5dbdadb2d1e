"""The frame of an optimizer that is a rule for one parameter. Knows no rule."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class PerParameterOptimizer(torch.optim.Optimizer):
    """Applies `update` to every parameter that has a gradient."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss is computed anew here
        """Update all parameters in place from their `.grad`."""
        assert closure is None, "the loss is computed by the training loop"
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self.update(parameter, parameter.grad, self.state[parameter], group)

    @abstractmethod
    def update(self, parameter: nn.Parameter, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update one parameter in place.

        Args:
            parameter: of any shape.
            grad: of the same shape; must not be changed.
            state: tensors kept between updates; empty before the first.
            group: the settings, `lr` and `weight_decay` among them.
        """
