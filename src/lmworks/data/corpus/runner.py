"""Who does the work: this process, a pool of processes on this machine, or Ray Data on many.

A task is a module-level function of one item that writes its own result and can be repeated, so a run that was
killed goes on where it stopped. Knows no task.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import WorkerError, require
from lmworks.core.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")


class RunnerConfig(Config):
    """Where the work is done."""

    kind: Literal["local", "ray"] = "local"
    """`local`: processes on this machine; `ray`: tasks of Ray Data, on the cluster that `RAY_ADDRESS` names or a local
    one. Both write the same bytes."""
    workers: Annotated[int | None, Field(ge=1)] = None
    """Tasks at work at once; None takes all cores of this machine, or what the cluster has."""


class Runner(Protocol):
    """Applies a task to items."""

    def map(self, task: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
        """Results in the order of the items."""
        ...


def runner_of(config: RunnerConfig) -> Runner:
    """The runner that a configuration names.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
    """
    if config.kind == "ray":
        require("ray", "ray")
        return RayRunner(config.workers)
    return LocalRunner(config.workers or _cores())


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalRunner:
    """A pool of processes; one worker or one item runs in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, task: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
        """Results in the order of the items."""
        with bar(description, len(items)) as progress:
            if min(self.workers, len(items)) <= 1:
                for item in items:
                    yield task(item)
                    progress.advance()
                return
            context = multiprocessing.get_context("forkserver")
            # The server imports what the task needs once, for all workers of all pools.
            context.set_forkserver_preload(["__main__", getattr(task, "__module__", "")])
            with ProcessPoolExecutor(min(self.workers, len(items)), context, initializer=_as_worker) as pool:
                try:
                    for result in pool.map(task, items):
                        yield result
                        progress.advance()
                except BrokenProcessPool:
                    raise WorkerError(
                        f"a worker was killed while it had to {description}",
                        "Run the same again, which goes on with what is left; with fewer workers if memory was short",
                    ) from None
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise


def _as_worker() -> None:
    """Ctrl-C reaches the whole group: the parent alone answers it, when the tasks at work are done.

    A parent that is killed cannot end its workers, which would wait for it for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(1)


class RayRunner:
    """Ray Data; files that tasks read and write must be on storage that all nodes share, under the same paths."""

    def __init__(self, workers: int | None) -> None:
        self.workers = workers

    def map(self, task: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
        """Results in the order of the items; a task's own error ends the run, as it does locally."""
        import ray

        if not ray.is_initialized():
            cluster = os.environ.get("RAY_ADDRESS")  # which has its own number of processors
            ray.init(
                cluster or "local", num_cpus=None if cluster else self.workers, include_dashboard=False,
                log_to_driver=False, logging_level=logging.ERROR,
            )  # fmt: skip
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # the bar below tells all that matters of a run
        ray.data.DataContext.get_current().enable_progress_bars = False
        folder = Path.cwd()

        def apply(row: dict[str, Any]) -> dict[str, Any]:
            with chdir(folder):  # workers of a cluster start elsewhere, and paths may be relative
                return {"number": row["number"], "result": pickle.dumps(_outcome(task, pickle.loads(row["item"])))}

        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        if not rows:
            return
        found: dict[int, Result] = {}
        next_one = 0
        with bar(description, len(items)) as progress:
            given = ray.data.from_items(rows, override_num_blocks=len(rows))
            for row in given.map(apply, compute=ray.data.TaskPoolStrategy(size=self.workers)).iter_rows():
                outcome = pickle.loads(row["result"])
                if isinstance(outcome, _Failure):
                    raise outcome.error
                found[row["number"]] = outcome
                progress.advance()
                while next_one in found:
                    yield found.pop(next_one)
                    next_one += 1


@dataclass(frozen=True)
class _Failure:
    """An error on its way back: Ray would wrap it and print it, and the user could not tell it from one of Ray's."""

    error: Exception


def _outcome(task: Callable[[Item], Result], item: Item) -> Result | _Failure:
    try:
        return task(item)
    except Exception as error:  # noqa: BLE001 - raised again where the results are read
        return _Failure(error)
