"""Sums, gathers and splits over the ranks of a group as differentiable functions, for tensor and sequence parallelism.

Each passes forward what the next operation needs and backward what the one before needs (Megatron-LM,
arXiv:1909.08053; sequence parallelism, arXiv:2205.05198). "Equal" means the same on every rank; "partial" means that
the true tensor is the sum over ranks. Knows no module.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# torch 2.13 renamed both and warns of the old names, which 2.11 alone has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def copied(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """An equal tensor as it is; its gradient, partial as every rank uses it for something else, is summed."""
    result: Tensor = _Copied.apply(x, group)  # type: ignore[no-untyped-call]  # a method of torch's without types
    return result


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of partial tensors; its gradient, equal as every rank goes on with the same, is passed on."""
    result: Tensor = _Summed.apply(x, group)  # type: ignore[no-untyped-call]  # a method of torch's without types
    return result


def joined(x: Tensor, length: int, group: dist.ProcessGroup) -> Tensor:
    """Each rank's run of rows -> equal [length, ...] that every rank uses alike; gradients, equal, are split."""
    result: Tensor = _Join.apply(x, length, group)  # type: ignore[no-untyped-call]  # a method of torch's without types
    return result


class TokenSplit:
    """How the tokens of one stack are dealt out: equal runs in the order of ranks, the last filled with zero rows.

    Args:
        group: the ranks that share them.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.tokens = 0
        """Of the whole batch that is in the stack; set by `split`."""

    def split(self, x: Tensor) -> Tensor:
        """Equal [N, E] -> the caller's [ceil(N / ranks), E]; gradients are gathered."""
        self.tokens = len(x)
        return self.part(x)

    def part(self, x: Tensor) -> Tensor:
        """As `split`, of a tensor about the batch that is in the stack already."""
        result: Tensor = _Split.apply(x, self.group)  # type: ignore[no-untyped-call]
        return result

    def join(self, x: Tensor) -> Tensor:
        """Each rank's tokens -> equal [N, E] that every rank uses alike; gradients, equal, are split."""
        return joined(x, self.tokens, self.group)

    def gather(self, x: Tensor) -> Tensor:
        """Each rank's tokens -> equal [N, E] that every rank uses otherwise; gradients, partial, are summed."""
        result: Tensor = _Gather.apply(x, self.tokens, self.group)  # type: ignore[no-untyped-call]
        return result

    def scatter(self, x: Tensor) -> Tensor:
        """Partial [N, E] -> the caller's tokens of their sum; gradients are gathered."""
        result: Tensor = _Scatter.apply(x, self.group)  # type: ignore[no-untyped-call]
        return result


def all_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks, a new tensor. Not differentiable."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _own(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    filled = _filled(x, group)
    size = len(filled) // group.size()
    return filled[dist.get_rank(group) * size :][:size].clone()


def _all(x: Tensor, tokens: int, group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(len(x) * group.size(), *x.shape[1:])
    _all_gather(out, x.contiguous(), group=group)
    return out[:tokens]


def _own_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    filled = _filled(x, group).contiguous()
    out = x.new_empty(len(filled) // group.size(), *x.shape[1:])
    _reduce_scatter(out, filled, group=group)
    return out


def _filled(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    missing = -len(x) % group.size()
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_sum(grad, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return all_sum(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.tokens = group, len(x)
        return _own(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all(grad, ctx.tokens, ctx.group), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: int, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all(x, tokens, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own(grad, ctx.group), None, None


class _Gather(_Join):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own_sum(grad, ctx.group), None, None


class _Scatter(_Split):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.tokens = group, len(x)
        return _own_sum(x, group)
