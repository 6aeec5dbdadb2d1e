"""Gradients of one update where each rank holds some layers, on their own or with replicas of the whole pipeline.

Knows no schedule beyond its name, and no model class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmworks.nn.batch import Batch
from lmworks.optim.clipping import GradientNorms, norms_of
from lmworks.optim.param_groups import trainable
from lmworks.parallel.mesh import Mesh
from lmworks.parallel.pipeline import Pipeline
from lmworks.train.step import Objective, StepSums, WorkingCopy

T = TypeVar("T")


class PipelineStep:
    """A pipeline of layers.

    The caller trains the weights of its stages: all others are frozen in its model. Gradients of the micro-batches of
    a step are added up in the precision of the backward pass.

    Args:
        master: float32 weights, whole and the same on every rank.
        objective: calls the model once.
        mesh: the ranks.
        precision: type of the forward and backward pass.
        num_microbatches: of every step.
        max_tokens: of the longest micro-batch.

    Raises:
        ParallelError: model, schedule and numbers do not fit.
    """

    def __init__(
        self, master: nn.Module, objective: Objective, mesh: Mesh, precision: torch.dtype, *, num_microbatches: int,
        max_tokens: int,
    ) -> None:  # fmt: skip
        self._mesh, self._working = mesh, WorkingCopy(master, precision)
        self.master, self.model = master, self._working.model
        self._pipeline = Pipeline(
            self.model, objective, mesh.group("pipeline"), schedule=mesh.config.pipeline_schedule,
            num_microbatches=num_microbatches, max_tokens=max_tokens,
        )  # fmt: skip
        held = {name for name, _ in self._pipeline.named_parameters()}
        everywhere: list[set[str]] = [set()] * mesh.size("pipeline")
        dist.all_gather_object(everywhere, held, group=mesh.group("pipeline"))
        self._owners = {name: rank for rank in reversed(range(len(everywhere))) for name in everywhere[rank]}
        for model in (self.master, self.model):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in held)

    def accumulate(self, objective: Objective, batches: Iterable[Batch], loss_scale: float | None = None) -> StepSums:
        """The objective is the one that the pipeline was made with."""
        assert loss_scale is None, "float16 is refused with a pipeline"
        found = self._pipeline.step(list(batches))
        self._working.collect(1.0)
        sums = [found.loss_sum, found.n_targets, *found.metrics.values()]
        totals = self._mesh.sum_tokens([torch.tensor(value, dtype=torch.float64) for value in sums])
        for _, parameter in trainable(self.master):
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=self._mesh.group("tokens"))
        loss_sum, n_targets, *metrics = map(float, totals)
        metrics_by_name = dict(zip(found.metrics, metrics, strict=True))
        return StepSums(loss_sum, n_targets, metrics_by_name, math.isfinite(found.loss_sum))

    def norms(self, tensors: Mapping[str, Tensor]) -> GradientNorms:
        """Of each tensor of the caller's stages, and of the whole model together."""
        own, elsewhere = norms_of(tensors), self._pipeline.counted_elsewhere()
        counted = torch.tensor([name not in elsewhere for name in tensors], device=own.each.device)
        square = (own.each.double().square() * counted).sum()
        dist.all_reduce(square, group=self._mesh.group("pipeline"))
        return GradientNorms(own.names, own.each, square.sqrt().float())

    def refresh(self) -> None:
        """Take over the updated weights."""
        self._working.refresh()

    @torch.no_grad()
    def call(self, function: Callable[[Any], T]) -> T:
        """With the weights of all stages, which are brought to every rank."""
        group = self._mesh.group("pipeline")
        for name, parameter in self.model.named_parameters():
            dist.broadcast(parameter.data, group=group, group_src=self._owners[name])
        return function(self.model)
