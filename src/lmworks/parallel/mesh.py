"""Process groups by name: who shares rows, weights, matrices, sequences and layers with whom.

Knows no model. Everything that communicates takes its group from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous

from lmworks.core.errors import ParallelError
from lmworks.parallel.config import DIMENSIONS, ParallelConfig
from lmworks.parallel.rendezvous import fresh_store

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it reports that one is missing."""


@dataclass(frozen=True)
class Mesh:
    """The ranks of one run, arranged in several views of the same order."""

    config: ParallelConfig
    """Resolved."""
    device: torch.device
    """Of the calling rank."""
    rows: DeviceMesh
    """[pipeline, data, shard, context, tensor], as configured."""
    weights: DeviceMesh
    """[pipeline, replicate, split, tensor]: who holds which part of a weight. Context ranks split weights as `shard`
    ranks do where anything is split, and hold replicas else."""
    tokens: DeviceMesh
    """[pipeline, tokens, tensor]: the ranks of `tokens` hold all different tokens of a step."""
    experts: DeviceMesh
    """[pipeline, expert_replica, expert, tensor]: the ranks of `data`, `shard` and `context` regrouped."""

    def group(self, name: str) -> dist.ProcessGroup:
        """The ranks that differ from the caller in dimension `name` of a view alone."""
        for view in (self.rows, self.weights, self.tokens, self.experts):
            if name in (view.mesh_dim_names or ()):
                return view.get_group(name)
        raise AssertionError(f"no view of the mesh has a dimension {name!r}")

    def size(self, name: str) -> int:
        """Ranks in `group(name)`."""
        return self.group(name).size()

    def rank(self, name: str) -> int:
        """The caller's place in `group(name)`."""
        return dist.get_rank(self.group(name))

    @property
    def batch_rank(self) -> int:
        """Which of the `config.batch_degree` shares of a step's rows the caller reads."""
        return self.rank("data") * self.config.shard + self.rank("shard")

    def sum_tokens(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Sums of scalars over all ranks that hold other tokens of the step: losses, counts, metrics.

        One collective, in float64 so that counts are exact. The ranks of `tensor` hold the same tokens and are not
        counted twice; of a pipeline the last stage alone has losses, and tells the others itself.
        """
        if not values:
            return []
        packed = torch.stack([value.detach().to(self.device, torch.float64) for value in values])
        dist.all_reduce(packed, group=self.group("tokens"))
        return list(packed.unbind())


def make_mesh(config: ParallelConfig, device_type: str = "cpu") -> Mesh:
    """Arrange the processes of the running process group.

    Args:
        config: degrees; -1 is resolved by the number of processes.
        device_type: "cpu" or "cuda".

    Raises:
        ParallelError: the degrees do not fit the number of processes.
    """
    config = config.resolve(dist.get_world_size())
    ranks = torch.arange(dist.get_world_size())
    split = config.shard * config.context if config.shard > 1 else 1

    def view(**shape: int) -> DeviceMesh:
        return DeviceMesh(device_type, ranks.view(*shape.values()), mesh_dim_names=tuple(shape))

    outer, inner = {"pipeline": config.pipeline}, {"tensor": config.tensor}
    return Mesh(
        config,
        torch.device("cuda", _local_rank()) if device_type == "cuda" else torch.device(device_type),
        view(**{name: getattr(config, name) for name in DIMENSIONS}),
        view(**outer, replicate=-1, split=split, **inner),
        view(**outer, tokens=-1, **inner),
        view(**outer, expert_replica=-1, expert=config.expert, **inner),
    )


@contextmanager
def process_group(device_type: str = "cpu", timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the processes that torchrun started, over gloo or nccl, and leave them at the end.

    Raises:
        ParallelError: the environment names no such processes, or the device is not there.
    """
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ParallelError(
            f"the environment lacks {', '.join(missing)}, by which processes find each other",
            "Start the program with torchrun",
        )
    if device_type == "cuda":
        if _local_rank() >= torch.cuda.device_count():
            raise ParallelError(
                f"local rank {_local_rank()} has no CUDA device; there are {torch.cuda.device_count()}",
                "Start as many processes on a host as it has devices, or train on the CPU",
            )
        torch.cuda.set_device(_local_rank())
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store = fresh_store(store, rank, world_size, timeout)
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
