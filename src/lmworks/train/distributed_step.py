"""Gradients of one update on the ranks of a mesh: what `step.py` does on one process.

Losses and counts are summed over the ranks once, gradients are sums that the trainer divides once. Knows how a model
can be spread from names given as strings, and no model class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lmworks.nn.batch import Batch
from lmworks.nn.moe import MixtureOfExperts
from lmworks.optim.clipping import GradientNorms, gradients, norms_of
from lmworks.optim.param_groups import trainable
from lmworks.optim.shards import part
from lmworks.parallel.distribute import distribute
from lmworks.parallel.expert import parallelize_experts
from lmworks.parallel.mesh import Mesh
from lmworks.train.profiling import phase
from lmworks.train.step import LossSums, Objective, StepSums, require_float32, scaled_backward

T = TypeVar("T")


class MeshStep:
    """A model that is replicated, sharded or divided, or several of these.

    In float32 whole replicas are summed by DDP. In lower precision FSDP does it, over shards of one rank where nothing
    is sharded: it keeps float32 weights beside those of the forward pass, and sums gradients in float32.

    Args:
        master: float32 weights, the same on every rank; arranged in place.
        mesh: the ranks.
        precision: type of the forward and backward pass.
        plan: of how matrices are divided, where `tensor` asks for it.
        units: names of the modules whose weights are gathered together.

    Raises:
        ParallelError: the model cannot be arranged so.
    """

    def __init__(
        self,
        master: nn.Module,
        mesh: Mesh,
        precision: torch.dtype,
        plan: Mapping[str, str] | None,
        units: Sequence[str],
    ) -> None:
        require_float32(master)
        self._mesh = mesh
        self._runner = distribute(master, mesh, plan=plan, units=units, precision=precision)
        self.master = self.model = master

    def accumulate(self, objective: Objective, batches: Iterable[Batch], loss_scale: float | None = None) -> StepSums:
        """Gradients are summed over ranks with the last micro-batch."""
        sums, factor, tokens = LossSums(), 1.0, 0
        for batch, last in _with_last(batches):
            if loss_scale is not None:  # one factor for all that is added up
                tokens = tokens or _greatest(batch.num_tokens, self._mesh)
            with self._runner.micro_batch(last=last):
                with phase("forward"):
                    loss = self._runner(objective, batch)
                with phase("backward"):
                    factor = scaled_backward(loss, tokens, loss_scale)
            sums.add(loss)
        if factor != 1.0:
            torch._foreach_mul_([part(gradient) for gradient in gradients(self.master).values()], 1 / factor)
        return sums.read(self._mesh.sum_tokens)

    def norms(self, tensors: Mapping[str, Tensor]) -> GradientNorms:
        """One all-reduce for all."""
        return norms_over_ranks(tensors, self._mesh)

    def refresh(self) -> None:
        """Nothing: weights of the forward pass are gathered anew in each step."""

    @torch.no_grad()
    def call(self, function: Callable[[Any], T]) -> T:
        """Every rank calls it, with functions that run the model equally often."""
        return self._runner(function)


class ExpertStep:
    """Experts on several ranks, all else replicated.

    The master's experts are DTensors that each rank holds some of; the model that runs is a copy with an exchange of
    tokens in place of its experts. Buffers are the same tensors in both.

    Args:
        master: float32 weights, the same on every rank; its experts are divided in place, and it cannot run any more.
        mesh: the ranks.
        precision: type of the forward and backward pass.

    Raises:
        ParallelError: the experts do not divide.
    """

    def __init__(self, master: nn.Module, mesh: Mesh, precision: torch.dtype) -> None:
        require_float32(master)
        self._mesh = mesh
        memo: dict[int, Any] = {id(buffer): buffer for buffer in master.buffers()}
        self.master, self.model = master, copy.deepcopy(master, memo)
        parallelize_experts(self.model, mesh.group("expert"))
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(precision)
        _divide_experts(master, mesh)
        own = {name.replace(".experts.local.", ".experts."): p for name, p in trainable(self.model)}
        self._pairs = [(parameter, own[name]) for name, parameter in trainable(master)]

    def accumulate(self, objective: Objective, batches: Iterable[Batch], loss_scale: float | None = None) -> StepSums:
        """Experts have seen the tokens of their whole group; the rest is summed over all ranks."""
        sums = LossSums()
        totals = [torch.zeros_like(part(master)) for master, _ in self._pairs]
        for batch in batches:
            with phase("forward"):
                loss = objective(self.model, batch)
            with phase("backward"):
                tokens = _greatest(batch.num_tokens, self._mesh) if loss_scale is not None else 0
                factor = scaled_backward(loss, tokens, loss_scale)
            for total, (_, own) in zip(totals, self._pairs, strict=True):
                if own.grad is not None:
                    total.add_(own.grad, alpha=1 / factor)
                    own.grad = None
            sums.add(loss)
        split = [isinstance(master, DTensor) for master, _ in self._pairs]
        for group, of_experts in (("expert_replica", True), ("tokens", False)):
            _sum_together([t for t, s in zip(totals, split, strict=True) if s == of_experts], self._mesh.group(group))
        for total, (master, _) in zip(totals, self._pairs, strict=True):
            master.grad = _like(total, master)
        return sums.read(self._mesh.sum_tokens)

    def norms(self, tensors: Mapping[str, Tensor]) -> GradientNorms:
        """One all-reduce for all."""
        return norms_over_ranks(tensors, self._mesh)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the updated weights."""
        for master, own in self._pairs:
            own.copy_(part(master))

    @torch.no_grad()
    def call(self, function: Callable[[Any], T]) -> T:
        """Every rank calls it, with functions that run the model equally often."""
        return function(self.model)


def norms_over_ranks(tensors: Mapping[str, Tensor], mesh: Mesh) -> GradientNorms:
    """Norms of tensors of which each rank has all or a part, each number counted once however many ranks hold it.

    Args:
        tensors: on all ranks under the same names.
        mesh: the ranks, without a pipeline.
    """
    if not tensors:
        return norms_of(tensors)
    parts = [part(tensor) for tensor in tensors.values()]
    squares = torch.stack([norm.to(mesh.device) for norm in torch._foreach_norm(parts, dtype=torch.float64)]).square()
    pieces = torch.tensor([_pieces(tensor) for tensor in tensors.values()], device=mesh.device)
    squares *= pieces / dist.get_world_size()
    dist.all_reduce(squares)
    each = squares.sqrt().float()
    return GradientNorms(tuple(tensors), each, torch.linalg.vector_norm(each))


def _pieces(tensor: Tensor) -> int:
    """Into how many different parts it is divided."""
    pieces = 1
    if isinstance(tensor, DTensor):
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
            pieces *= 1 if placement.is_replicate() else size
    return pieces


def _divide_experts(master: nn.Module, mesh: Mesh) -> None:
    """Each rank of the `expert` group keeps its run of every layer's experts."""
    view = mesh.experts["expert_replica", "expert"]
    for layer in [m for m in master.modules() if isinstance(m, MixtureOfExperts)]:
        for name, parameter in list(layer.experts.named_parameters()):
            held = distribute_tensor(parameter.detach(), view, [Replicate(), Shard(0)], src_data_rank=None)
            layer.experts.register_parameter(name, nn.Parameter(held, requires_grad=parameter.requires_grad))


def _like(own: Tensor, parameter: Tensor) -> Tensor:
    """The caller's part as what `parameter` is."""
    if not isinstance(parameter, DTensor):
        return own
    return DTensor.from_local(
        own, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def _sum_together(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Add each up over a group, in place and in one collective."""
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def _greatest(value: int, mesh: Mesh) -> int:
    flag = torch.tensor(value, device=mesh.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


def _with_last(values: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each value, and whether it is the last."""
    iterator = iter(values)
    try:
        value = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield value, False
        value = following
    yield value, True
