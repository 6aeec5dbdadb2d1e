"""Hangs told apart from work: a thread on every rank that notices when nothing moves, and names whom all wait for.

The training thread only sets a few attributes. The watchdog's thread writes them to the rank's heartbeat file; once
nothing has moved for too long it asks all ranks for their Python stacks, reads their files and reports. A rank that is
gone ends the others; one that is merely slow is reported, and the backend's own timeout ends the wait. Where a
collective fails because another rank died, the error that comes out names that rank and not the connection.
Knows no trainer: it is told steps, phases and groups.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import torch.distributed as dist
from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import DiskFullError, ParallelError
from lmworks.parallel.heartbeats import Beat, Heartbeats, group_key
from lmworks.parallel.mesh import Mesh
from lmworks.parallel.waiting import Diagnosis, diagnose

logger = logging.getLogger(__name__)

MISSED_BEATS = 4
"""That a rank may leave out before it counts as gone; they are a second apart or more, as busy hosts pause."""
THREAD = "watchdog"
SHOWN_FRAMES = 40
"""Innermost frames of a stack that are kept."""
_REMEDY = "Look at that rank's log and host; started again, the run goes on from its newest checkpoint"
_FOLLOWS = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset|refused)|Broken pipe|timed? ?out", re.I)


class WatchdogConfig(Config):
    """When a run that does not move is reported."""

    report_after_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Without any progress until the report; longer than the longest evaluation or checkpoint on one rank alone."""
    interval_seconds: Annotated[float, Field(gt=0)] = 1.0
    """Between heartbeats. On a network file system longer than it caches attributes."""


class Watchdog:
    """Watches the calling rank while its block runs.

    Args:
        folder: for heartbeats; all ranks share it.
        config: when to report.
        groups: whose collectives are counted, by name; see `mesh_groups`.
        on_report: called with the fields of an event, on one rank for each hang.
    """

    def __init__(
        self,
        folder: Path,
        config: WatchdogConfig,
        groups: Mapping[str, dist.ProcessGroup],
        on_report: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        self.config, self._on_report = config, on_report
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._beats = Heartbeats(folder, world_size)
        self._groups = {group_key(name, dist.get_process_group_ranks(g)): g for name, g in groups.items()}
        self._step, self._phase, self._marks, self._count = 0, "start", 0, 0
        self._moved: tuple[object, float] = (None, time.monotonic())
        self._ended: str | None = None
        self._follows = False
        self._patience = MISSED_BEATS * max(config.interval_seconds, 1.0)
        self._asked: float | None = None
        self._reported = self._told = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    def mark(self, step: int, phase: str) -> None:
        """Say what the rank begins. Costs as much as setting three attributes."""
        self._step, self._phase, self._marks = step, phase, self._marks + 1

    def __enter__(self) -> Self:
        if self.rank == 0:
            self._beats.ask(False)
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Say how the rank ended.

        Raises:
            ParallelError: in place of a broken or timed-out collective, naming the rank whose fault it was.
        """
        named = None
        self._follows = _from_elsewhere(error)
        if self._follows:
            named = self._explain()
        self._stop.set()
        self._thread.join()
        if self._asked is not None:
            self._beats.ask(False)
        first_line = str(error).partition("\n")[0][:300]
        self._ended = "done" if error is None else f"{type(error).__name__}: {first_line}"
        self._beat()
        if named is not None and named.culprits:
            raise ParallelError(f"step {self._step} cannot be finished: {named.reason}", _REMEDY) from error

    def _explain(self) -> Diagnosis:
        """Whose fault a failed collective was; waits until silence can be told from a pause."""
        deadline = time.monotonic() + self._patience + 2 * self.config.interval_seconds
        while True:
            beats = self._beats.read()
            found = diagnose(beats, self._beats.silent(beats), self._patience)
            if found.certain or time.monotonic() > deadline:
                self._report(found, beats)
                return found
            time.sleep(self.config.interval_seconds / 4)

    def _run(self) -> None:
        while not self._stop.wait(self.config.interval_seconds):
            self._beat()
            with self._tolerant():
                self._look()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Say once that files cannot be written: a full or lost disk must not end a run that would go on."""
        try:
            yield
        except (OSError, DiskFullError) as error:
            if not self._told:
                self._told = True
                logger.warning("the watchdog cannot write: %s", error)

    def _beat(self) -> None:
        now = time.monotonic()
        progress = (self._marks, *(begun := {key: _begun(group) for key, group in self._groups.items()}).values())
        if progress != self._moved[0]:
            self._moved = (progress, now)
        self._count += 1
        beat = Beat(
            self.rank,
            count=self._count,
            step=self._step,
            phase=self._phase,
            marks=self._marks,
            unmoved_seconds=now - self._moved[1],
            collectives=begun,
            ended=self._ended,
            follows=self._follows,
            stacks=python_stacks() if self._beats.asked else {},
        )
        with self._tolerant():
            self._beats.write(beat)

    def _look(self) -> None:
        """Report once for each time that nothing moves; end the rank when it waits for one that is gone."""
        limit, now = self.config.report_after_seconds, time.monotonic()
        if now - self._moved[1] < limit:
            if self._asked is not None:
                self._asked, self._reported = None, False
                self._beats.ask(False)
                logger.warning("step %d goes on", self._step)
            return
        if self._asked is None:
            self._asked = now
            self._beats.ask(True)
        beats = self._beats.read()
        silent = self._beats.silent(beats)
        if not self._reported and now - self._asked > 2.5 * self.config.interval_seconds:
            self._reported = True
            self._report(diagnose(beats, silent, self._patience), beats)
        found = diagnose(beats, silent, max(limit, self._patience))
        if self._reported and found.gone and self.rank not in found.gone and not self._stop.is_set():
            self._end(found)

    def _report(self, found: Diagnosis, beats: Mapping[int, Beat]) -> None:
        stacks = {rank: beat.stacks for rank, beat in sorted(beats.items()) if beat.stacks}
        logger.error("no progress in step %d (%s): %s", self._step, self._phase, found.reason)
        for rank, threads in stacks.items():
            for thread, stack in threads.items():
                logger.info("rank %d, thread %s:\n%s", rank, thread, stack)
        speakers = [r for r, beat in beats.items() if r not in found.gone and (beat.ended is None or beat.follows)]
        if self.rank == min(speakers, default=self.rank):
            event = {"step": self._step, "finding": "hang", "action": "report", "reason": found.reason}
            waiting = {str(rank): list(ranks) for rank, ranks in found.waiting.items()}
            everyone = {str(rank): threads for rank, threads in stacks.items()}
            with self._tolerant():
                self._on_report(event | {"ranks": list(found.culprits), "waiting": waiting, "stacks": everyone})

    def _end(self, found: Diagnosis) -> None:
        """End the process: its main thread is inside a collective that nobody will finish, where no exception goes."""
        self._ended, self._follows = f"gave up waiting: {found.reason}", True
        self._beat()
        message = f"step {self._step} cannot be finished: {found.reason}"
        logger.critical(message)
        logging.shutdown()
        print(f"Error: {ParallelError(message, _REMEDY)}", file=sys.__stderr__, flush=True)
        os._exit(1)


def _from_elsewhere(error: BaseException | None) -> bool:
    """Whether an error began with a collective that failed; a checkpoint under way may have wrapped or replaced it."""
    while error is not None:
        if isinstance(error, RuntimeError) and _FOLLOWS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def mesh_groups(mesh: Mesh) -> dict[str, dist.ProcessGroup]:
    """The groups of a mesh whose members begin the same collectives in the same order, by name.

    Pipeline stages talk pairwise and count differently, so theirs is left out.
    """
    names = ("data", "shard", "context", "tensor", "replicate", "split", "tokens", "expert")
    groups = {name: mesh.group(name) for name in names}
    assert dist.group.WORLD is not None, "a mesh has processes"
    return {"world": dist.group.WORLD, **{name: group for name, group in groups.items() if group.size() > 1}}


def python_stacks() -> dict[str, str]:
    """What every Python thread but the watchdog's is doing, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {}
    for ident, frame in sys._current_frames().items():
        if names.get(ident) != THREAD:
            stacks[names.get(ident, f"thread {ident}")] = "".join(traceback.format_stack(frame)[-SHOWN_FRAMES:])
    return stacks


def _begun(group: dist.ProcessGroup) -> int:
    """How many collectives the caller has begun in the group; both gloo and nccl count them."""
    count: int = group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # not in torch's type stubs
    return count
