"""Who trains: one process, or the ranks of a mesh; which rows are the caller's, and what all have to agree on.

The trainer asks the same questions of both. Knows no trainer, no optimizer and no files.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lmworks.parallel.config import ParallelConfig, rows_per_rank
from lmworks.parallel.context import context_parallel
from lmworks.parallel.mesh import Mesh, make_mesh, process_group
from lmworks.train.save_group import SaveGroup
from lmworks.train.step import Objective

Value = TypeVar("Value")


class Ranks(Protocol):
    """All processes of a run, as one of them sees the others. Every rank asks every question."""

    @property
    def is_first(self) -> bool:
        """Whether the caller speaks and writes for all."""
        ...

    @property
    def reader(self) -> int:
        """Which share of a step's rows the caller reads; ranks that share one draw the same random numbers."""
        ...

    @property
    def rank(self) -> int:
        """The caller's number among all."""
        ...

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """The caller's `(first, count)` of the rows of a step, which are numbered alike however many ranks there are.

        Raises:
            ParallelError: they do not divide.
        """
        ...

    def objective(self, objective: Objective) -> Objective:
        """The loss of the caller's share of a batch."""
        ...

    def total(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all that the ranks learn from."""
        ...

    def greatest(self, value: int) -> int:
        """The greatest of the ranks' values."""
        ...

    def everywhere(self, own: Value) -> list[Value]:
        """What each rank has, in their order."""
        ...

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first rank, and no other, makes.

        Raises:
            Exception: on all ranks, what it raised on the first.
        """
        ...


@dataclass(frozen=True)
class OneProcess:
    """There is nobody else."""

    is_first: bool = True
    reader: int = 0
    rank: int = 0

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """All."""
        return first, count

    def objective(self, objective: Objective) -> Objective:
        """The same."""
        return objective

    def total(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The same."""
        return list(values)

    def greatest(self, value: int) -> int:
        """The same."""
        return value

    def everywhere(self, own: Value) -> list[Value]:
        """The caller's alone."""
        return [own]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What is made."""
        return make()


@dataclass(frozen=True)
class MeshRanks:
    """The processes of a mesh."""

    mesh: Mesh
    group: SaveGroup = field(default_factory=SaveGroup)
    """All of them, for what the first does alone."""

    @property
    def is_first(self) -> bool:
        """Whether the caller speaks and writes for all."""
        return self.rank == 0

    @property
    def reader(self) -> int:
        """Ranks of `tensor`, `context` and `pipeline` read the same rows."""
        return self.mesh.batch_rank

    @property
    def rank(self) -> int:
        """Of the whole world."""
        return dist.get_rank()

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """The caller's run of neighbors among the step's rows."""
        own = rows_per_rank(count, self.mesh.config)
        return first + self.reader * own, own

    def objective(self, objective: Objective) -> Objective:
        """Of the caller's tokens, where sequences are split."""
        config = self.mesh.config
        return context_parallel(objective, self.mesh.group("context"), method=config.context_method)

    def total(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Over the ranks that hold other tokens."""
        return self.mesh.sum_tokens(values)

    def greatest(self, value: int) -> int:
        """One small all-reduce."""
        flag = torch.tensor(value, device=self.mesh.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)

    def everywhere(self, own: Value) -> list[Value]:
        """It travels pickled: for what happens seldom."""
        found = [own] * dist.get_world_size()
        dist.all_gather_object(found, own)
        return found

    def from_first(self, make: Callable[[], Value]) -> Value:
        """It travels pickled, as does an error."""
        return self.group.first(make)


def world_size() -> int:
    """Processes of this run: of the process group, or those that torchrun says it started."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(config: ParallelConfig, device: torch.device) -> Ranks:
    """The ranks of this run: those of the process group, which is joined where torchrun started several processes.

    Args:
        config: how they share the work.
        device: of the model; its type decides how processes talk.

    Raises:
        ParallelError: the degrees do not fit the number of processes.
    """
    if not dist.is_initialized() and world_size() > 1:
        stack = ExitStack()
        stack.enter_context(process_group(device.type))
        atexit.register(stack.close)
    if world_size() > 1:
        return MeshRanks(make_mesh(config, device.type))
    config.resolve(1)
    return OneProcess()
