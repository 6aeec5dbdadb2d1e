"""Lion: the sign of an interpolated momentum (arXiv:2302.06675). Knows one parameter at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmworks.optim.per_parameter import PerParameterOptimizer


class Lion(PerParameterOptimizer):
    """One moment, steps of one size: half of AdamW's state; wants 3 to 10 times smaller rates, more decay.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; every entry moves by this much.
        betas: share of the momentum in the step, and its decay.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, parameter: nn.Parameter, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Move each entry by `lr` against the sign of (beta1 · momentum + (1 - beta1) · gradient)."""
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum, (beta1, beta2) = state["exp_avg"], group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(torch.lerp(momentum, grad, 1 - beta1).sign_(), alpha=group["lr"])
        momentum.lerp_(grad, 1 - beta2)
