"""The ranks that write and read files together: what one cannot do, none believes to be done.

They talk over gloo in a group of their own, so that a checkpoint can be written in the background while the training
communicates too. Without a process group there is one rank, which asks nobody. Knows no file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

import torch.distributed as dist

from lmworks.core.errors import CheckpointError

Result = TypeVar("Result")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others to write or read their parts."""


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    """What became of some work on one rank."""

    rank: int
    result: Result | None = None
    error: Exception | None = None


class SaveGroup:
    """All ranks of the run. Every method is called by all of them, in the same order."""

    def __init__(self) -> None:
        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if many else None
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)

    @property
    def is_first(self) -> bool:
        """Whether the caller is the one that publishes."""
        return self.rank == 0

    def each(self, work: Callable[[], Result]) -> Result:
        """Do `work` on every rank; the caller's result.

        Raises:
            Exception: the same on all ranks, if the work failed on one.
        """
        done = self._attempt(work)
        self._gather(_Outcome(self.rank, None, done.error))
        assert done.error is None, "an error of any rank was raised"
        return done.result  # type: ignore[return-value]  # Result may be None itself

    def gather(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every rank; all results in the order of ranks on the first, nothing on the others.

        Raises:
            Exception: the same on all ranks, if the work failed on one.
        """
        return [outcome.result for outcome in self._gather(self._attempt(work))]  # type: ignore[misc]

    def first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on the first rank; its result on all.

        Raises:
            Exception: the same on all ranks, if the work failed.
        """
        box = [self._attempt(work) if self.is_first else None]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        (outcome,) = box
        assert outcome is not None, "the first rank has an outcome"
        if outcome.error is not None:
            raise outcome.error
        return outcome.result  # type: ignore[return-value]

    def deal(self, work: Callable[[], list[Result]]) -> Result:
        """Do `work` on the first rank; each rank gets its own element of the result.

        Raises:
            Exception: the same on all ranks, if the work failed.
        """
        parts: list[Result] = []
        self.first(lambda: parts.extend(work()))
        if self._group is None:
            return parts[0]
        box: list[Result | None] = [None]
        dist.scatter_object_list(box, parts if self.is_first else None, src=0, group=self._group)
        return box[0]  # type: ignore[return-value]

    def _attempt(self, work: Callable[[], Result]) -> _Outcome[Result]:
        try:
            return _Outcome(self.rank, work())
        except Exception as error:  # noqa: BLE001  # it is raised on every rank
            first = _first_cause(error)
            return _Outcome(self.rank, None, first if self.size == 1 else _portable(first, self.rank))

    def _gather(self, outcome: _Outcome[Result]) -> list[_Outcome[Result]]:
        """Everyone's outcome on the first rank, once it is known to all that none has failed."""
        outcomes = [outcome]
        if self._group is not None:
            found: list[_Outcome[Result]] | None = [outcome] * self.size if self.is_first else None
            dist.gather_object(outcome, found, dst=0, group=self._group)
            outcomes = found or []
        failure = next((o.error for o in outcomes if o.error is not None), None)
        if self._group is not None:
            failure = self.first(lambda: failure)
        if failure is not None:
            raise failure
        return outcomes


def _first_cause(error: Exception) -> Exception:
    """The operating system's error where there was one: torch's file writer fails once more while it is closed."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError):
            return at
        at = at.__cause__ or at.__context__
    return error


def _portable(error: Exception, rank: int) -> Exception:
    """The error as other ranks can raise it, naming where it happened."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{error.strerror} (rank {rank})")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # whatever it is that cannot travel
        return CheckpointError(f"rank {rank} failed: {error!r}")
    return error
