"""Weights, gradients and optimizer states split over ranks and gathered block by block when needed (FSDP2).

What is split is ZeRO's stage (arXiv:1910.02054): with 1, weights and gradients are whole from the first micro-batch of
a step to the last; with 2, gradients are split after every backward pass; with 3, weights are gathered once for each
pass. Gradients are sums over the tokens of all ranks, never means. Knows modules by name, and no model class.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard


def shard(
    root: nn.Module,
    units: Sequence[nn.Module],
    mesh: DeviceMesh,
    *,
    zero_stage: int = 3,
    cpu_offload: bool = False,
    precision: torch.dtype = torch.float32,
    ignored: Collection[nn.Parameter] = (),
) -> FSDPModule:
    """Split all parameters in place; each becomes a DTensor whose local part the optimizer updates.

    Args:
        root: what is called in each forward pass; its parameters outside of `units` are gathered for all of a step.
        units: whose parameters are gathered together: the model's blocks.
        mesh: [split], or [replicate, split] (HSDP).
        zero_stage: see above.
        cpu_offload: the parts live in host memory.
        precision: type of the forward and backward pass; parts, sums of gradients and updates stay float32.
        ignored: parameters that stay as they are, with gradients of the caller's own.
    """
    left = set(ignored) or None
    policy = MixedPrecisionPolicy()
    if precision != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    for unit in units:
        fully_shard(
            unit, mesh=mesh, reshard_after_forward=zero_stage == 3, mp_policy=policy, offload_policy=offload,
            ignored_params=left,
        )  # fmt: skip
    fully_shard(
        root, mesh=mesh, reshard_after_forward=False, mp_policy=policy, offload_policy=offload, ignored_params=left
    )
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert isinstance(root, FSDPModule), "fully_shard changes the class of what it is given"
    return root


def begin_micro_batch(root: FSDPModule, zero_stage: int, *, last: bool) -> None:
    """Say what is to be kept whole until the next micro-batch of the step."""
    root.set_requires_gradient_sync(last or zero_stage >= 2)
    root.set_reshard_after_backward(last or zero_stage == 3)
    root.set_is_last_backward(last)
