"""Gradients of one update: forward, backward, accumulation, precision.

Decides nothing: whether the gradients are used is the guard's. Knows no files, no schedule and no data beyond the
batches it is given.
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
from lmworks.optim.clipping import ClippingConfig, GradientNorms, clip_gradients, gradient_norms
from lmworks.optim.param_groups import trainable
from lmworks.train.profiling import phase

Objective = Callable[[Any, Batch], Loss]


class WorkingCopy:
    """The model as the forward pass sees it, beside the float32 weights that the optimizer updates.

    In float32 both are one. In bfloat16 and float16 `model` is a copy whose parameters are cast once per update, so
    no cast is repeated per layer call or micro-batch and all activations have that type; autocast, which
    keeps the residual stream in float32 and casts at each product, is slower on CPU. Buffers are the same tensors in
    both, so running statistics and biases of routers are what was saved and what is used.

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
            frozen = (p for p in master.parameters() if not p.requires_grad and p.dtype == precision)
            shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*frozen, *master.buffers())}
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
    def collect(self, factor: float = 1.0) -> None:
        """Add the gradients of the last backward pass, times `factor`, to the float32 ones."""
        for master, own in self._pairs:
            if own.grad is not None:
                gradient = own.grad.float()
                if factor != 1.0:
                    gradient *= factor
                if master.grad is None:
                    master.grad = gradient
                else:
                    master.grad += gradient
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
    working: WorkingCopy, objective: Objective, batches: Iterable[Batch], where: str, loss_scale: float | None = None
) -> StepTotals:
    """Leave in the master weights' `.grad` the sum over all targets of `batches` of the gradient of the loss.

    Sums are accumulated and divided once, by the count over all micro-batches, so any split of the same
    rows gives the same gradient. The device is waited for once, at the end.

    Args:
        working: whose master gradients must be empty.
        objective: the loss.
        batches: the micro-batches of one update.
        where: named in errors, e.g. `"step 12 (rows 384 to 415)"`.
        loss_scale: factor of the mean loss in the backward pass of a working copy in float16; None: none.

    Raises:
        TrainingError: there is nothing to learn from.
    """
    counted: list[Tensor] = []
    sums: dict[str, Tensor] = {}
    for batch in batches:
        with phase("forward"):
            loss = objective(working.model, batch)
        with phase("backward"):
            # A power of two near the number of targets makes a scaled mean of the sum, and rounds nothing.
            factor = 1.0 if loss_scale is None else loss_scale / 2.0 ** math.frexp(batch.num_tokens)[1]
            torch.autograd.backward(loss.loss_sum if factor == 1.0 else loss.loss_sum * factor)
            working.collect(1 / factor)
        counted.append(torch.stack([loss.loss_sum.detach().double(), loss.n_targets.detach().double()]))
        for name, metric in loss.metrics.items():
            sums[name] = sums[name] + metric if name in sums else metric
    loss_sum, n_targets = torch.stack(counted).sum(0).tolist() if counted else (0.0, 0.0)
    if n_targets <= 0:
        raise TrainingError(f"{where} holds no target to learn", "Check the loss weights of the data")
    return StepTotals(loss_sum / n_targets, n_targets, {k: float(v) / n_targets for k, v in sums.items()})


@torch.no_grad()
def finish_gradients(model: nn.Module, n_targets: float, clipping: ClippingConfig | None) -> GradientNorms:
    """Divide the accumulated gradients by `n_targets`, limit them if they are finite, return the norms before."""
    gradients = [p.grad for _, p in trainable(model) if p.grad is not None]
    torch._foreach_div_(gradients, n_targets)
    norms = gradient_norms(model)
    if clipping is not None and math.isfinite(float(norms.total)):
        clip_gradients(model, norms, clipping)
    return norms
