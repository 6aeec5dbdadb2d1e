"""What a mixture of experts adds to training: losses that even the routing, and biases moved by the load.

Wraps any objective. Knows no model class: routers are found among the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.matrices import different_layers
from lmworks.models.slots import MoEConfig
from lmworks.nn.batch import Batch
from lmworks.nn.routing import (
    Router,
    RoutingStatistics,
    load_balance,
    load_balancing_loss,
    router_z_loss,
    update_correction_bias,
)
from lmworks.objectives.loss import Loss

Objective = Callable[[Any, Batch], Loss]


def balanced(objective: Objective, model: ModelConfig, bias_update_speed: float) -> Objective:
    """The objective with the losses and biases that the model's experts ask for; itself where there are none.

    Args:
        objective: of the tokens.
        model: whose `router_aux_loss_coef`, `router_z_loss_coef` and `correction_bias` count.
        bias_update_speed: one move of a correction bias.

    Raises:
        ConfigError: layers ask for different coefficients.
    """
    experts = [
        mlp
        for _, stack in model.columns.values()
        for _, mlp, _ in different_layers(stack)
        if isinstance(mlp, MoEConfig)
    ]
    coefficients = {(mlp.router_aux_loss_coef, mlp.router_z_loss_coef) for mlp in experts}
    if len(coefficients) > 1:
        raise ConfigError(
            f"layers ask for different router loss coefficients {sorted(coefficients)}, and a model has one pair",
            "Give all mixtures of experts the same router_aux_loss_coef and router_z_loss_coef",
        )
    if not experts:
        return objective
    aux_loss_coef, z_loss_coef = coefficients.pop()
    if not (aux_loss_coef or z_loss_coef or any(mlp.correction_bias for mlp in experts)):
        return objective
    return RoutedObjective(objective, aux_loss_coef, z_loss_coef, bias_update_speed)


class RoutedObjective:
    """An objective plus coefficients times routing losses, weighted like a mean over the targets.

    After each step `step_done` moves the correction biases by the loads since the last one.

    Args:
        objective: of the tokens.
        aux_loss_coef: of the load-balancing loss (Switch).
        z_loss_coef: of the router z-loss (ST-MoE).
        bias_update_speed: one move of a correction bias (DeepSeek-V3).
    """

    def __init__(
        self, objective: Objective, aux_loss_coef: float, z_loss_coef: float, bias_update_speed: float = 1e-3
    ) -> None:
        self.objective = objective
        self.aux_loss_coef, self.z_loss_coef = aux_loss_coef, z_loss_coef
        self.bias_update_speed = bias_update_speed
        self._loads: dict[Router, Tensor] = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The whole loss; `router_aux_loss` and `router_z_loss` are among the metrics where they count."""
        routers = [module for module in model.modules() if isinstance(module, Router)]
        for router in routers:
            router.record = True
        try:
            loss = self.objective(model, batch)
        finally:
            for router in routers:
                router.record = False  # a recomputation in the backward pass must not be counted again
        statistics = {router: router.statistics for router in routers if router.statistics is not None}
        for router, seen in statistics.items():
            router.statistics = None  # holds the graph
            if model.training and torch.is_grad_enabled():
                self._loads[router] = self._loads[router] + seen.load if router in self._loads else seen.load
        loss_sum, metrics = loss.loss_sum, dict(loss.metrics)
        for name, coefficient, function in (
            ("router_aux_loss", self.aux_loss_coef, load_balancing_loss),
            ("router_z_loss", self.z_loss_coef, router_z_loss),
        ):
            if coefficient and statistics:
                value = _mean(function, list(statistics.values())) * loss.n_targets
                loss_sum = loss_sum + coefficient * value
                metrics[name] = value.detach()
        return Loss(loss_sum, loss.n_targets, metrics)

    @torch.no_grad()
    def step_done(self, *, updated: bool, total: Callable[[Sequence[Tensor]], list[Tensor]] = list) -> dict[str, float]:
        """Move the biases, if the step was made; the worst balance of a layer over the step's tokens.

        Args:
            updated: whether the weights were changed; if not, the loads are dropped.
            total: sums over the ranks that saw other tokens.
        """
        loads, self._loads = {router: total([load])[0] for router, load in self._loads.items()}, {}
        if not updated or not loads:
            return {}
        for router, load in loads.items():
            if (bias := router.e_score_correction_bias) is not None:
                bias.copy_(update_correction_bias(bias, load, self.bias_update_speed))
        return {"expert_max_over_mean": max(load_balance(load).max_over_mean for load in loads.values())}


def _mean(function: Callable[[Sequence[RoutingStatistics]], Tensor], layers: list[RoutingStatistics]) -> Tensor:
    """`function` over all layers; layers of different numbers of experts apart, weighted by how many they are."""
    by_experts: dict[int, list[RoutingStatistics]] = {}
    for layer in layers:
        by_experts.setdefault(layer.logits.shape[1], []).append(layer)
    return torch.stack([function(group) * (len(group) / len(layers)) for group in by_experts.values()]).sum()
