"""Chance on ranks that share rows: alike where they hold the same activations, their own where they hold other tokens.

The trainer seeds such ranks alike, so what is whole on all of them is dropped alike. Knows no module and no trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def own_draws(group: dist.ProcessGroup, device: torch.device) -> Iterator[None]:
    """Within the block draw numbers that the other ranks do not; after it all go on alike.

    Args:
        group: ranks whose generators are in the same state.
        device: where the block draws, besides the CPU.
    """
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type != "cpu" else []):
        torch.manual_seed(seed + dist.get_rank(group))
        yield
