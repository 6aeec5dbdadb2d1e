"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners (arXiv:2409.11321). Knows one matrix at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.optim.per_parameter import PerParameterOptimizer

SIDES = ("left", "right")
"""Rows and columns of the matrix."""
LONGEST_SIDE = 8192
"""A longer side of a matrix keeps the standard basis: its preconditioner would be too large."""


class Soap(PerParameterOptimizer):
    """For 2-D parameters. The first gradient only sets the basis: it moves nothing.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        betas: decay of the first and second moment; the second also of the preconditioners.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        precondition_frequency: steps between two updates of the basis.
        max_precond_dim: a side longer than this keeps the standard basis.

    Raises:
        ConfigError: a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition_frequency: int = 10,
        max_precond_dim: int = LONGEST_SIDE,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "frequency": precondition_frequency, "max_dim": max_precond_dim})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ConfigError(
                        f"SOAP updates matrices, and a parameter has shape {tuple(parameter.shape)}",
                        "Leave it to AdamW",
                    )

    def update(self, parameter: nn.Parameter, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Adam's update of the rotated gradient, rotated back; the momentum itself is never rotated."""
        beta1, beta2 = group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            for side, size in zip(SIDES, parameter.shape, strict=True):
                if size <= group["max_dim"]:
                    state[side] = grad.new_zeros(size, size)
            _accumulate(state, grad, beta2)
            for side in _used(state):
                # Ascending eigenvalues come first; the largest shall.
                state[f"{side}_basis"] = torch.linalg.eigh(state[side])[1].flip(1)
            return
        state["step"] += 1
        count = float(state["step"])
        rotated = _rotate(grad, state)
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        direction = _rotate_back(_rotate(state["exp_avg"], state).div_(scale), state)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction, alpha=group["lr"] / (1 - beta1**count))
        _accumulate(state, grad, beta2)
        if count % group["frequency"] == 0:
            _refresh_basis(state)


def _used(state: dict[str, Tensor]) -> list[str]:
    return [side for side in SIDES if side in state]


def _accumulate(state: dict[str, Tensor], grad: Tensor, beta: float) -> None:
    """Moving averages of G Gᵀ and Gᵀ G."""
    for side in _used(state):
        state[side].lerp_(grad @ grad.T if side == "left" else grad.T @ grad, 1 - beta)


def _rotate(matrix: Tensor, state: dict[str, Tensor]) -> Tensor:
    matrix = state["left_basis"].T @ matrix if "left" in state else matrix
    return matrix @ state["right_basis"] if "right" in state else matrix.clone()


def _rotate_back(matrix: Tensor, state: dict[str, Tensor]) -> Tensor:
    matrix = state["left_basis"] @ matrix if "left" in state else matrix
    return matrix @ state["right_basis"].T if "right" in state else matrix


def _refresh_basis(state: dict[str, Tensor]) -> None:
    """One step of power iteration from the present basis; the second moment follows the order of its columns."""
    for axis, side in enumerate(SIDES):
        if side not in state:
            continue
        basis = state[f"{side}_basis"]
        order = torch.argsort((basis * (state[side] @ basis)).sum(0), descending=True)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_select(axis, order)
        state[f"{side}_basis"] = torch.linalg.qr(state[side] @ basis[:, order])[0]
