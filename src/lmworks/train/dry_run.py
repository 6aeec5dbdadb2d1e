"""A run that is not made: what a mesh would need and exchange in a step, on a machine that need not have it.

Knows no process and no weight. `memory_plan.py` and `dry_run_communication.py` do the counting.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lmworks.core.errors import ModelTooLargeError
from lmworks.models.accounting import flops_per_token, parameters
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.parallel_plan import tensor_plan
from lmworks.models.transformer import Transformer
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.support import check_support
from lmworks.train.config import TrainConfig
from lmworks.train.dry_run_communication import Exchange, communication
from lmworks.train.memory_plan import RankMemory, RankWork, rank_memory, rank_work

GIB = 2**30
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands."""


@dataclass(frozen=True)
class DryRun:
    """One step of a run, foreseen."""

    parameters: int
    parallel: ParallelConfig
    """Resolved."""
    work: RankWork
    memory: RankMemory
    """Of the rank that needs most."""
    exchanges: list[Exchange]
    flops: float
    """Of a step, over all ranks; what is computed a second time is not counted."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; memory in bytes."""
        return {
            "parameters": self.parameters,
            "parallel": self.parallel.to_dict(),
            "work": asdict(self.work),
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "exchanges": [asdict(exchange) for exchange in self.exchanges],
            "flops": self.flops,
        }


def dry_run(model: ModelConfig, train: TrainConfig, world_size: int) -> DryRun:
    """Foresee a step.

    Args:
        model: what is trained.
        train: how, with its mesh.
        world_size: processes.

    Raises:
        ParallelError: model, batch and mesh do not fit.
    """
    parallel = train.parallel.resolve(world_size)
    built = _require_mesh(model, train, parallel)
    return DryRun(
        parameters=parameters(model).total,
        parallel=parallel,
        work=rank_work(train, parallel),
        memory=rank_memory(model, train, parallel),
        exchanges=communication(built, train, parallel),
        flops=flops_per_token(model, train.sequence_length / 2).training * train.batch_tokens,
    )


def require_fit(model: ModelConfig, train: TrainConfig, world_size: int, available: int) -> None:
    """Refuse a run that its mesh or its memory cannot hold, before anything is built.

    Args:
        model: what is trained.
        train: how, with its mesh.
        world_size: processes.
        available: bytes for each of them.

    Raises:
        ParallelError: model, batch and mesh do not fit.
        ModelTooLargeError: as of `require_memory`.
    """
    parallel = train.parallel.resolve(world_size)
    _require_mesh(model, train, parallel)
    require_memory(rank_memory(model, train, parallel), available)


def _require_mesh(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> Transformer:
    """The model on the meta device, which fits the mesh."""
    work = rank_work(train, parallel)
    with torch.device("meta"):
        built = build_model(model)
    plan = tensor_plan(model, parallel.tensor) if parallel.tensor > 1 else None
    check_support(built, parallel, plan=plan, num_microbatches=work.micro_batches)
    return built


def require_memory(memory: RankMemory, available: int) -> None:
    """Refuse what cannot fit, before anything is built.

    Args:
        memory: of the rank that needs most.
        available: bytes for each rank.

    Raises:
        ModelTooLargeError: with the estimate and what lowers it most.
    """
    if memory.total <= available:
        return
    parts = {field.name: getattr(memory, field.name) for field in fields(memory)}
    shown = ", ".join(f"{name.replace('_', ' ')} {size / GIB:.2f}" for name, size in parts.items() if size)
    kept_between_passes = memory.activations + memory.head
    remedy = (
        "Lower train.micro_batch_tokens, or set train.activation_checkpointing to full"
        if kept_between_passes > memory.total / 2
        else "Split the weights over more ranks with train.parallel.shard, set train.optimizer.state_bits to 8, or "
        "choose a smaller model"
    )
    raise ModelTooLargeError(
        f"a step would keep {memory.total / GIB:.2f} GiB on a rank ({shown}), and {available / GIB:.2f} GiB are free",
        remedy,
    )


def available_memory(device_type: str = "cpu") -> int:
    """Bytes that each process of this host may take: of its GPU, or its share of the main memory."""
    if device_type == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:  # not Linux: all there is
        pass
    for limit in MEMORY_LIMITS:
        if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
            free = min(free, int(text))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
