"""Optimizer states in host memory for weights on a device: fetched for one parameter at a time, while it is updated.

The device then holds no moments (8 of AdamW's 16 bytes a weight in float32), and each update moves them there and back
once; the arithmetic stays the device's, so the weights come out in the same bits (compare ZeRO-Offload,
arXiv:2101.06840, which updates on the host instead). Knows no algorithm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")
SMALLEST = 1024
"""Entries below which a state tensor stays where it is: step counts, and what is not worth a transfer."""


class OffloadedState:
    """An optimizer whose large state tensors are in host memory between steps, pinned where the weights are on CUDA.

    Args:
        optimizer: updates each parameter independently of the others, as all here do.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        """Update the parameters one at a time. Copies run in the order of the device's work; waits once, at the end."""
        groups = self.optimizer.param_groups
        devices: set[torch.device] = set()
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.optimizer.state[parameter]
                    host = {slot: tensor for slot, tensor in state.items() if travels(tensor)}
                    for slot, tensor in host.items():
                        state[slot] = tensor.to(parameter.device, non_blocking=True)
                    self.optimizer.param_groups = [{**group, "params": [parameter]}]
                    self.optimizer.step()
                    _put_away(state, host, parameter)
                    devices.add(parameter.device)
        finally:
            self.optimizer.param_groups = groups
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # a checkpoint reads host memory at once


def travels(tensor: object) -> bool:
    """Whether a state tensor is kept in host memory."""
    return isinstance(tensor, Tensor) and tensor.numel() >= SMALLEST


def _put_away(state: dict[str, Tensor], host: dict[str, Tensor], parameter: nn.Parameter) -> None:
    """Copy what was updated back to where it was, or to new host memory after the first update."""
    for slot, tensor in state.items():
        if not travels(tensor):
            continue
        kept = host.get(slot)
        if kept is None or kept.device != HOST:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=parameter.device.type == "cuda")
        state[slot] = kept.copy_(tensor, non_blocking=True) if kept is not tensor else kept
