"""Gradients of one update: forward, backward, accumulation, precision.

Decides nothing: whether the gradients are used is the guard's. Knows no files, no schedule, no other process and no
data beyond the batches it is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lmworks.core.errors import TrainingError
from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss
from lmworks.optim.clipping import ClippingConfig, GradientNorms, clip_gradients, gradients, norms_of
from lmworks.optim.param_groups import trainable
from lmworks.optim.shards import part
from lmworks.train.profiling import phase

Objective = Callable[[Any, Batch], Loss]
Result = TypeVar("Result")


@dataclass(frozen=True)
class StepSums:
    """Sums over everything that one update learns from."""

    loss_sum: float = 0.0
    n_targets: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    own_loss_is_finite: bool = True
    """Of the caller's share alone."""


class Working(Protocol):
    """A model as the steps of a run use it, on one process or on many."""

    master: nn.Module
    """Holds the float32 weights that the optimizer updates, or the caller's part of them."""
    model: nn.Module
    """What runs forward and backward, under the same names."""

    def accumulate(self, objective: Objective, batches: Iterable[Batch], loss_scale: float | None = None) -> StepSums:
        """Leave in the master weights' `.grad` the gradient of the sum of all losses of the update; those sums.

        Args:
            objective: the loss.
            batches: the caller's micro-batches of one update.
            loss_scale: factor of the mean loss in a backward pass in float16; None: none.
        """
        ...

    def norms(self, tensors: Mapping[str, Tensor]) -> GradientNorms:
        """Of the master's weights, gradients or updates by name, over all processes."""
        ...

    def refresh(self) -> None:
        """Take over the updated master weights."""
        ...

    def call(self, function: Callable[[Any], Result]) -> Result:
        """`function(model)` without learning, with all weights there."""
        ...


class LossSums:
    """Adds up what an objective gives for each micro-batch; the device is waited for once, at the end."""

    def __init__(self) -> None:
        self._counted: list[Tensor] = []
        self._metrics: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        """Take in one micro-batch."""
        self._counted.append(torch.stack([loss.loss_sum.detach().double(), loss.n_targets.detach().double()]))
        for name, metric in loss.metrics.items():
            self._metrics[name] = self._metrics[name] + metric if name in self._metrics else metric

    def read(self, over_ranks: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda values: values) -> StepSums:
        """The sums.

        Args:
            over_ranks: adds each value up over those who have other micro-batches.
        """
        if not self._counted:
            return StepSums()
        names = sorted(self._metrics)
        counted = torch.stack(self._counted).sum(0)
        finite = counted[0].isfinite()
        values = [*counted.unbind(), *(self._metrics[name] for name in names)]
        loss_sum, n_targets, *metrics = (float(value) for value in over_ranks(values))
        return StepSums(loss_sum, n_targets, dict(zip(names, metrics, strict=True)), bool(finite))


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
        TrainingError: a trainable weight is not float32.
    """

    def __init__(self, master: nn.Module, precision: torch.dtype) -> None:
        require_float32(master)
        self.master = self.model = master
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        if precision != torch.float32:
            frozen = (p for p in master.parameters() if not p.requires_grad and p.dtype == precision)
            shared: dict[int, Tensor] = {id(tensor): tensor for tensor in (*frozen, *master.buffers())}
            self.model = copy.deepcopy(master, dict(shared))
            for parameter in self.model.parameters():  # buffers keep their type: angles need float32
                parameter.data = parameter.data.to(precision)
            own = dict(trainable(self.model))
            self._pairs = [(parameter, own[name]) for name, parameter in trainable(master)]

    def accumulate(self, objective: Objective, batches: Iterable[Batch], loss_scale: float | None = None) -> StepSums:
        """One micro-batch after the other; sums of gradients are kept in float32."""
        sums = LossSums()
        for batch in batches:
            with phase("forward"):
                loss = objective(self.model, batch)
            with phase("backward"):
                factor = scaled_backward(loss, batch.num_tokens, loss_scale)
                self.collect(1 / factor)
            sums.add(loss)
        return sums.read()

    def norms(self, tensors: Mapping[str, Tensor]) -> GradientNorms:
        """Of whole tensors."""
        return norms_of(tensors)

    def call(self, function: Callable[[Any], Result]) -> Result:
        """`function(model)`."""
        return function(self.model)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the updated weights."""
        for master, own in self._pairs:
            own.copy_(master)

    @torch.no_grad()
    def collect(self, factor: float) -> None:
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


def require_float32(model: nn.Module) -> None:
    """Check that small updates will not be rounded away.

    Raises:
        TrainingError: a trainable weight is not float32.
    """
    for name, parameter in trainable(model):
        if parameter.dtype != torch.float32:
            raise TrainingError(
                f"the trainable weight {name!r} is {parameter.dtype}, and updates need float32",
                "Load the model in float32; `precision` alone decides the type of the forward pass",
            )


def scaled_backward(loss: Loss, num_tokens: int, loss_scale: float | None) -> float:
    """The backward pass of a sum of losses times a factor, which is returned: 1 where there is no loss scale.

    Args:
        loss: of a micro-batch.
        num_tokens: of it.
        loss_scale: meant for the mean loss.
    """
    # A power of two near the number of targets makes a scaled mean of the sum, and rounds nothing.
    factor = 1.0 if loss_scale is None else loss_scale / 2.0 ** math.frexp(num_tokens)[1]
    torch.autograd.backward(loss.loss_sum if factor == 1.0 else loss.loss_sum * factor)
    return factor


@dataclass(frozen=True)
class StepTotals:
    """Figures of one update."""

    loss: float
    """Nats per target."""
    n_targets: float
    metrics: dict[str, float]
    """The objective's further figures, per target."""
    own_loss_is_finite: bool
    """Of the caller's share alone: where one rank's is not and its rows are good, the rank is to blame."""


def accumulate_gradients(
    working: Working, objective: Objective, batches: Iterable[Batch], where: str, loss_scale: float | None = None
) -> StepTotals:
    """Leave in the master weights' `.grad` the sum over all targets of an update of the gradient of the loss.

    Sums are accumulated and divided once, by the count over all micro-batches and processes, so any split of the same
    rows gives the same gradient.

    Args:
        working: whose master gradients must be empty.
        objective: the loss.
        batches: the caller's micro-batches of one update.
        where: named in errors, e.g. `"step 12 (rows 384 to 415)"`.
        loss_scale: factor of the mean loss in a backward pass in float16; None: none.

    Raises:
        TrainingError: there is nothing to learn from.
    """
    sums = working.accumulate(objective, batches, loss_scale)
    if sums.n_targets <= 0:
        raise TrainingError(f"{where} holds no target to learn", "Check the loss weights of the data")
    metrics = {name: value / sums.n_targets for name, value in sums.metrics.items()}
    return StepTotals(sums.loss_sum / sums.n_targets, sums.n_targets, metrics, sums.own_loss_is_finite)


@torch.no_grad()
def finish_gradients(
    master: nn.Module,
    n_targets: float,
    clipping: ClippingConfig | None,
    measure: Callable[[Mapping[str, Tensor]], GradientNorms] = norms_of,
) -> GradientNorms:
    """Divide the accumulated gradients by `n_targets`, limit them if they are finite, return the norms before.

    Args:
        master: with the gradients.
        n_targets: of the whole update.
        clipping: the limit.
        measure: the norms of gradients, of which other processes may have parts.
    """
    found = gradients(master)
    torch._foreach_div_([part(gradient) for gradient in found.values()], n_targets)
    norms = measure(found)
    if clipping is not None and math.isfinite(float(norms.total)):
        clip_gradients(master, norms, clipping)
    return norms
