"""LAMB: Adam whose step is as long, relative to its parameter, for all (arXiv:1904.00962).

Made for very large batches. Knows one parameter at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmworks.optim.per_parameter import PerParameterOptimizer


class Lamb(PerParameterOptimizer):
    """Adam's direction with weight decay, at the length `lr` · |parameter|.

    Args:
        params: parameters, or groups of them.
        lr: learning rate: length of a step relative to that of the parameter.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled; part of the direction.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, parameter: nn.Parameter, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """The trust ratio |parameter| / |direction| is 1 where either is zero, as for new biases."""
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = float(state["step"])
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        direction = (state["exp_avg"] / (1 - beta1**count)).div_(scale)
        direction.add_(parameter, alpha=group["weight_decay"])
        size, length = parameter.norm(), direction.norm()
        trust = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
        parameter.sub_(direction.mul_(trust), alpha=group["lr"])
