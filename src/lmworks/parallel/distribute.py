"""A model and its objective as every rank of a mesh runs them: divided, split or replicated, behind one object.

The trainer calls it for each micro-batch, then sums losses and counts over the mesh and divides once. Knows any
model by names of its modules, given as strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lmworks.core.errors import ParallelError
from lmworks.nn.xl_attention import XLAttention
from lmworks.parallel.expert import expert_parameters, parallelize_experts
from lmworks.parallel.mesh import Mesh
from lmworks.parallel.replicas import replicate
from lmworks.parallel.sharding import begin_micro_batch, shard
from lmworks.parallel.tensor import divide
from lmworks.parallel.vocabulary import local

Result = TypeVar("Result")


class _Call(nn.Module):
    """Any function of the model as a forward pass: hooks that gather weights see its beginning and its end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any] | None, Any]:
        """The result, a dataclass as what makes it and its fields: torch looks for tensors in mappings.

        The class itself does not travel: DDP would look for tensors in its fields.
        """
        result = function(self.model, *args)
        if is_dataclass(result) and not isinstance(result, type):
            return partial(type(result)), {field.name: getattr(result, field.name) for field in fields(result)}
        return None, result


class DistributedModel:
    """What `distribute` gives.

    Args:
        model: whose parameters the optimizer updates; its names are those of one process.
        runner: calls functions of the model.
        mesh: the ranks.
        partial: names of parameters whose gradients are to be summed over the `tensor` ranks.
        experts: parameters that only the ranks of `expert_replica` share.
    """

    def __init__(
        self, model: nn.Module, runner: nn.Module, mesh: Mesh, partial: Sequence[str],
        experts: Sequence[nn.Parameter] = (),
    ) -> None:  # fmt: skip
        self.model, self.mesh, self._runner = model, mesh, runner
        self._experts = [p for p in experts if p.requires_grad]
        self._learning = False
        wanted = set(partial)
        self._partial = [p for name, p in model.named_parameters() if name in wanted and p.requires_grad]

    def __call__(self, function: Callable[..., Result], *args: Any) -> Result:
        """`function(model, *args)`, with the weights there. Every rank calls it, to learn inside `micro_batch` only.

        Args:
            function: returns tensors, in tuples, lists, mappings, or in the fields of a dataclass.
            args: passed on.
        """
        kind, result = self._runner(function, *args)
        if not self._learning:  # no backward pass will split again what the forward pass gathered
            for module in self._runner.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return result if kind is None else kind(**result)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Forward and backward pass of one micro-batch; after the step's last, gradients are summed over ranks."""
        if isinstance(self._runner, FSDPModule):
            begin_micro_batch(self._runner, self.mesh.config.zero_stage, last=last)
        quiet: AbstractContextManager[None] = nullcontext()
        if isinstance(self._runner, DistributedDataParallel) and not last:
            quiet = self._runner.no_sync()
        self._learning = True
        try:
            with quiet:
                yield
        finally:
            self._learning = False
        if last:
            self._sum(self._partial, "tensor")
            self._sum(self._experts, "expert_replica")

    def _sum(self, parameters: Sequence[nn.Parameter], dimension: str) -> None:
        """Sum what each rank of a dimension has of the parameters' gradients, in one collective."""
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if not gradients or self.mesh.size(dimension) == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients]).to(self.mesh.device)
        dist.all_reduce(flat, group=self.mesh.group(dimension))
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def distribute(
    model: nn.Module,
    mesh: Mesh,
    *,
    plan: Mapping[str, str] | None = None,
    units: Sequence[str] = (),
    precision: torch.dtype = torch.float32,
) -> DistributedModel:
    """Arrange a model on a mesh, in place.

    Args:
        model: float32, the same weights on every rank.
        mesh: the ranks; all but `pipeline` is served here. Experts are split unless they already are; for `context`
            the objective is to be one of `context_parallel`.
        plan: style of every module that `tensor` divides, by its name.
        units: names of the modules that are gathered together where weights are sharded.
        precision: type of the forward and backward pass.

    Raises:
        ParallelError: there is no plan, or it does not fit the model.
    """
    config, summed = mesh.config, list[str]()
    if config.expert > 1 and not any(expert_parameters(model)):
        parallelize_experts(model, mesh.group("expert"))
    experts = dict(expert_parameters(model))
    if experts and config.shard > 1 and precision != torch.float32:
        raise ParallelError(
            f"experts on several ranks are not cast to {precision} by what shards the other weights",
            "Set `expert: 1` or `shard: 1`, or compute in float32",
        )
    if config.tensor > 1:
        if plan is None:
            raise ParallelError(
                f"tensor is {config.tensor}, and the model states no plan of how to divide it", "Set `tensor: 1`"
            )
        summed = divide(model, plan, mesh.weights["tensor"], tokens=config.sequence_parallel)
    call = _Call(model)
    runner: nn.Module = call
    # What gathers weights also casts them: in lower precision it serves replicas too, as shards of one rank.
    if config.shard > 1 or precision != torch.float32 or (config.tensor > 1 and mesh.size("replicate") > 1):
        names = ("replicate", "split") if mesh.size("replicate") > 1 else ("split",)
        modules = [model.get_submodule(name) for name in units]
        shard(
            call, modules, mesh.weights[names], zero_stage=config.zero_stage, cpu_offload=config.cpu_offload,
            precision=precision, ignored=experts.values(),
        )  # fmt: skip
    elif mesh.size("tokens") > 1:
        runner = replicate(
            call, mesh.group("tokens"), config.gradient_compression, ignored=[f"model.{name}" for name in experts],
            # XLNet's parameters for segments have no part in a loss without segments, nor have layers left out.
            unused=any(isinstance(m, XLAttention) or getattr(m, "layerdrop", 0.0) for m in model.modules()),
        )  # fmt: skip
    return DistributedModel(model, runner, mesh, summed, list(experts.values()))
