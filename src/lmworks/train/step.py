"""One update of the weights: forward, backward, accumulation, precision, and the guard before the optimizer.

Knows no files, no schedule and no data beyond the batches it is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import TrainingError
from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss
from lmworks.optim.param_groups import trainable

Objective = Callable[[Any, Batch], Loss]


class WorkingCopy:
    """The model as the forward pass sees it, beside the float32 weights that the optimizer updates.

    In float32 both are one. In bfloat16 `model` is a copy whose parameters are cast once per update, so
    no cast is repeated per layer call or micro-batch and all activations are bfloat16; autocast, which
    keeps the residual stream in float32 and casts at each product, is slower on CPU.

    Args:
        master: the model that is trained.
        precision: type of the forward and backward pass.

    Raises:
        TrainingError: a trainable weight is not float32; small updates would be rounded away.
    """

    def __init__(self, master: nn.Module, precision: torch.dtype) -> None:
        for name, parameter in trainable(master):
            if parameter.dtype != torch.float32:
                raise TrainingError(
                    f"the trainable weight {name!r} is {parameter.dtype}, and updates need float32",
                    "Load the model in float32; `precision` alone decides the type of the forward pass",
                )
        self.model = master
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        if precision != torch.float32:
            shared = {id(p): p for p in master.parameters() if not p.requires_grad and p.dtype == precision}
            self.model = copy.deepcopy(master, dict(shared))
            for parameter in self.model.parameters():  # buffers keep their type: angles need float32
                parameter.data = parameter.data.to(precision)
            own = dict(trainable(self.model))
            self._pairs = [(parameter, own[name]) for name, parameter in trainable(master)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the updated weights."""
        for master, own in self._pairs:
            own.copy_(master)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of the last backward pass to the float32 ones."""
        for master, own in self._pairs:
            if own.grad is not None:
                if master.grad is None:
                    master.grad = own.grad.float()
                else:
                    master.grad += own.grad
                own.grad = None


@dataclass(frozen=True)
class StepTotals:
    """Figures of one update."""

    loss: float
    """Nats per target."""
    n_targets: float
    metrics: dict[str, float]
    """The objective's further figures, per target."""


def accumulate_gradients(
    working: WorkingCopy, objective: Objective, batches: Iterable[Batch], where: str
) -> StepTotals:
    """Leave in the master weights' `.grad` the gradient of the mean loss over all targets of `batches`.

    Sums are accumulated and divided once, by the count over all micro-batches, so any split of the same
    rows gives the same gradient.

    Args:
        working: whose master gradients must be empty.
        objective: the loss.
        batches: the micro-batches of one update.
        where: named in errors, e.g. `"step 12 (rows 384 to 415)"`.

    Raises:
        TrainingError: the loss is not finite, or there is nothing to learn from.
    """
    loss_sum, n_targets = 0.0, 0.0
    sums: dict[str, Tensor] = {}
    for batch in batches:
        loss = objective(working.model, batch)
        value = float(loss.loss_sum.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at {where}", _REMEDY)
        torch.autograd.backward(loss.loss_sum)
        working.collect()
        loss_sum += value
        n_targets += float(loss.n_targets)
        for name, metric in loss.metrics.items():
            sums[name] = sums[name] + metric if name in sums else metric
    if n_targets <= 0:
        raise TrainingError(f"{where} holds no target to learn", "Check the loss weights of the data")
    return StepTotals(loss_sum / n_targets, n_targets, {k: float(v) / n_targets for k, v in sums.items()})


@torch.no_grad()
def finish_gradients(model: nn.Module, n_targets: float, max_grad_norm: float | None, where: str) -> float:
    """Divide the accumulated gradients by `n_targets`, clip them to a global norm, and return the norm before.

    Raises:
        TrainingError: a gradient is not finite; the weights are untouched.
    """
    gradients = [p.grad for _, p in trainable(model) if p.grad is not None]
    torch._foreach_div_(gradients, n_targets)
    norm = float(nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient norm is {norm} at {where}", _REMEDY)
    if max_grad_norm is not None and norm > max_grad_norm:
        torch._foreach_mul_(gradients, max_grad_norm / norm)
    return norm


_REMEDY = (
    "The weights were not updated and the last checkpoint is intact; "
    "lower the learning rate, lengthen the warm-up, or look at these rows"
)
