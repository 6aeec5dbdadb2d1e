"""How many ranks share which part of the work, as values checked against the number of processes.

Knows no process group and no model; `mesh.py` makes the groups.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import ParallelError
from lmworks.parallel.pipeline_schedules import ScheduleName

Degree = Annotated[int, Field(ge=1)]
Rest = Literal[-1]

DIMENSIONS = ("pipeline", "data", "shard", "context", "tensor")
"""Of the mesh, outermost first: ranks that talk most are neighbors, which launchers place on one host."""


class ParallelConfig(Config):
    """Degrees of every form of parallelism; their product, without `expert`, is the number of processes."""

    data: Degree | Rest = 1
    """Replicas of the weights, each with batches of its own; -1 takes all ranks that the others leave."""
    shard: Degree | Rest = 1
    """Ranks over which each replica's weights, gradients and optimizer states are split (FSDP), each with batches of
    its own; -1 takes all ranks that the others leave."""
    tensor: Degree = 1
    """Ranks over which single matrices are split."""
    context: Degree = 1
    """Ranks over which the tokens of one sequence are split."""
    pipeline: Degree = 1
    """Ranks over which the layers are split."""
    expert: Degree = 1
    """Ranks over which the experts of a layer are split; the same ranks that `data`, `shard` and `context` count."""
    zero_stage: Literal[1, 2, 3] = 3
    """What `shard` splits: optimizer states (1), gradients too (2), weights too (3) (ZeRO, arXiv:1910.02054)."""
    cpu_offload: bool = False
    """Sharded weights, gradients and optimizer states live in host memory."""
    sequence_parallel: bool = True
    """Between the split matrices each of the `tensor` ranks holds some of the tokens (arXiv:2205.05198)."""
    gradient_compression: Literal["none", "bfloat16", "powersgd"] = "none"
    """Of what replicas exchange where nothing is sharded; PowerSGD is lossy (arXiv:1905.13727)."""
    context_method: Literal["ring", "ulysses"] = "ring"
    """How attention reaches tokens of other `context` ranks: keys and values travel (any number of heads), or heads
    are exchanged (they must divide)."""
    pipeline_schedule: ScheduleName = "1f1b"
    """Which of the `pipeline` ranks computes what when."""

    def resolve(self, world_size: int) -> ParallelConfig:
        """The same with every degree a number, for so many processes.

        Raises:
            ParallelError: the degrees do not multiply to `world_size`, or `expert` does not divide.
        """
        resolved = self if -1 not in (self.data, self.shard) else self._fill(world_size)
        degrees = {name: getattr(resolved, name) for name in DIMENSIONS}
        if (needed := resolved.world_size) != world_size:
            factors = " x ".join(f"{name} {degree}" for name, degree in degrees.items())
            raise ParallelError(
                f"{factors} = {needed} ranks, and there are {world_size} processes",
                f"Start {needed} processes, or set `data: -1` to take what the others leave",
            )
        tokens = degrees["data"] * degrees["shard"] * degrees["context"]
        if tokens % self.expert:
            raise ParallelError(
                f"expert {self.expert} does not divide data x shard x context = {tokens}, whose ranks it groups",
                "Choose a divisor",
            )
        if self.cpu_offload and degrees["shard"] == 1:
            raise ParallelError("cpu_offload needs sharded weights, and shard is 1", "Set `shard` to 2 or more")
        if self.gradient_compression != "none" and degrees["shard"] * degrees["tensor"] > 1:
            raise ParallelError(
                f"gradient_compression {self.gradient_compression!r} is of what whole replicas exchange, and here are "
                f"shard {degrees['shard']}, tensor {degrees['tensor']}",
                "Set `shard: 1` and `tensor: 1`, or leave compression out",
            )
        return resolved

    @property
    def world_size(self) -> int:
        """Processes that the resolved degrees need."""
        size = 1
        for name in DIMENSIONS:
            size *= getattr(self, name)
        return size

    @property
    def batch_degree(self) -> int:
        """Ranks that read different rows: the replicas times their shards."""
        return self.data * self.shard

    def _fill(self, world_size: int) -> ParallelConfig:
        if self.data == self.shard == -1:
            raise ParallelError("data and shard are both -1", "Give one of them; the other takes the rest")
        open_name = "data" if self.data == -1 else "shard"
        given = abs(self.world_size)  # the one degree of -1 changes the sign alone
        if world_size % given:
            raise ParallelError(
                f"the given degrees multiply to {given}, which does not divide the {world_size} processes",
                f"Start a multiple of {given} processes",
            )
        return self.model_copy(update={open_name: world_size // given})


def rows_per_rank(rows: int, config: ParallelConfig) -> int:
    """Rows of a step that each reader gets.

    Args:
        rows: of the step, over all ranks.
        config: resolved.

    Raises:
        ParallelError: they do not divide.
    """
    if rows % config.batch_degree:
        raise ParallelError(
            f"{rows} rows of a step do not divide among data x shard = {config.batch_degree} ranks",
            "Choose batch_tokens as a multiple of sequence_length times those ranks",
        )
    return rows // config.batch_degree
