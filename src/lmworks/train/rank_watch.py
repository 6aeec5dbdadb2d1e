"""What watches the ranks of a run while it trains: logs, heartbeats, equal replicas, stragglers.

The trainer tells it when a step begins, has its gradients and ends. Of one process there is nothing to compare, and
every call does nothing. Knows no trainer, no data and no objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch.distributed as dist
from pydantic import Field
from torch import nn

from lmworks.core.config import Config
from lmworks.parallel.consistency import ReplicaCheck
from lmworks.parallel.expert import expert_parameters
from lmworks.parallel.mesh import Mesh
from lmworks.parallel.rank_logs import rank_log
from lmworks.parallel.stragglers import Stragglers
from lmworks.parallel.watchdog import Watchdog, WatchdogConfig, mesh_groups
from lmworks.train.events import EventLog
from lmworks.train.profiling import PHASES, hearing_phases


class RankWatchConfig(Config):
    """How closely the ranks of a run are watched; nothing of it changes the weights."""

    replicas_every: Annotated[int, Field(gt=0)] | None = 500
    """Steps between checks that replicas have the same gradients and the same weights, bit for bit; None: never."""
    stragglers_every: Annotated[int, Field(gt=0)] | None = 50
    """Steps over which the slowest rank is told in the metrics; None: never."""
    watchdog: WatchdogConfig = WatchdogConfig()


class RankWatch:
    """Watches the calling rank and compares it with the others. All ranks call the same methods in the same order.

    Args:
        config: what is checked when.
        run_folder: shared by all ranks; gets `logs/` and `heartbeats/`.
        model: as it is arranged on the mesh.
        mesh: the ranks; None: one process.
    """

    def __init__(self, config: RankWatchConfig, run_folder: Path, model: nn.Module, mesh: Mesh | None) -> None:
        self._config, self._folder, self._mesh = config, run_folder, mesh
        self._check: ReplicaCheck | None = None
        self._stragglers: Stragglers | None = None
        self._watchdog: Watchdog | None = None
        self._since = 0
        if mesh is not None and config.replicas_every is not None:
            parts = {name: mesh.rank("expert") for name, _ in expert_parameters(model)}
            self._check = ReplicaCheck(model, mesh, config.replicas_every, parts)
        if mesh is not None and config.stragglers_every is not None:
            assert dist.group.WORLD is not None, "a mesh has processes"
            self._stragglers = Stragglers(dist.group.WORLD, PHASES, mesh.device)
        self._step = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the block runs, keep the rank's log and its heartbeat.

        Raises:
            ParallelError: in place of a collective that broke, naming the rank whose fault it was.
        """
        if self._mesh is None:
            yield
            return
        events = EventLog(self._folder / "events.jsonl")
        groups = mesh_groups(self._mesh)
        with (
            rank_log(self._folder / "logs"),
            Watchdog(self._folder / "heartbeats", self._config.watchdog, groups, events.append) as self._watchdog,
            hearing_phases(self._hear),
        ):
            yield

    def step_begins(self, step: int) -> None:
        """Say so.

        Args:
            step: as in the metrics: the first is 1.
        """
        self._step = step

    def gradients_are_there(self) -> None:
        """Check them, if it is time.

        Raises:
            ParallelError: they differ between replicas, naming the first parameter and the ranks.
        """
        if self._check is not None:
            self._check.check(self._step, gradients=True)

    def step_ends(self) -> dict[str, Any]:
        """Check the updated weights and compare times, if it is time; `{"straggler": ...}` for the step's record.

        Raises:
            ParallelError: weights differ between replicas, naming the first parameter and the ranks.
        """
        self._since += 1
        if self._check is not None:
            self._check.check(self._step)
        every = self._config.stragglers_every
        if self._stragglers is None or every is None or self._step % every:
            return {}
        found = self._stragglers.compare(self._since)
        self._since = 0
        return {"straggler": {"rank": found.rank, "phase": found.phase, "behind_seconds": found.behind_seconds}}

    def _hear(self, phase: str, seconds: float | None) -> None:
        if seconds is None and self._watchdog is not None:
            self._watchdog.mark(self._step, phase)
        if seconds is not None and self._stragglers is not None:
            self._stragglers.add(phase, seconds)
