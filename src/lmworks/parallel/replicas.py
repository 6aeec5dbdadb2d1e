"""Whole replicas of the weights, whose gradients are added up in buckets while the backward pass goes on (DDP).

Gradients are sums over the tokens of all ranks, never means: the trainer divides once, by the count. Knows no model.
"""

# No `from __future__ import annotations`: DDP checks the annotations of its hooks, which would be strings.

from collections.abc import Collection
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

POWERSGD_RANK = 4
POWERSGD_START = 10
"""Steps of exact sums before compression, as gradients of the first are the least low-rank (arXiv:1905.13727)."""


def replicate(
    module: nn.Module,
    group: dist.ProcessGroup,
    compression: Literal["none", "bfloat16", "powersgd"] = "none",
    *,
    ignored: Collection[str] = (),
    unused: bool = False,
) -> DistributedDataParallel:
    """Wrap a module; the ranks begin with the weights of the first.

    Args:
        module: all of its trainable parameters take part in every backward pass, unless `unused`.
        group: ranks with other tokens each.
        compression: of what they exchange.
        ignored: names of parameters that are left as they are, with gradients of the caller's own.
        unused: some parameters may take no part; they are searched for in every forward pass.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(ignored))
    replicated = DistributedDataParallel(
        module, process_group=group, gradient_as_bucket_view=True, find_unused_parameters=unused
    )
    if compression == "powersgd":
        state = PowerSGDState(group, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=POWERSGD_START)
        replicated.register_comm_hook(state, _powersgd_sum)
    else:
        hook = _sum if compression == "none" else _bfloat16_sum
        replicated.register_comm_hook(group, hook)
    return replicated


def _sum(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's own hook divides by the number of ranks."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _bfloat16_sum(group: dist.ProcessGroup, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Half the bytes; each rank's share is rounded to eight bits of mantissa."""
    buffer = bucket.buffer()
    work = dist.all_reduce(buffer.to(torch.bfloat16), group=group, async_op=True)
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))


def _powersgd_sum(state: PowerSGDState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Two thin factors of each matrix; what is lost is added to the next step's gradient."""
    ranks = state.process_group.size()
    return powerSGD_hook(state, bucket).then(lambda done: done.value() * ranks)
