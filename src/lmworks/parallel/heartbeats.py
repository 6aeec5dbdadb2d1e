"""What each rank says of itself once a second: a small file in the run's folder, replaced as a whole.

Files and not the process group's store, because they outlive every process, a person can read them, and nothing waits
for a server that may be what has died. Ages are measured by whoever reads, so clocks of hosts may differ.
Knows no process group.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Beat:
    """One rank, as it last said."""

    rank: int
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    count: int = 0
    """Grows with every beat; one that stays is of a process that is gone or frozen."""
    step: int = 0
    phase: str = "start"
    marks: int = 0
    """Phases begun so far: who has fewer is behind."""
    unmoved_seconds: float = 0.0
    """Since a phase or a collective last began."""
    collectives: dict[str, int] = field(default_factory=dict)
    """Collectives begun in each group, by the group's name and ranks (see `group_key`)."""
    ended: str | None = None
    """`"done"`, or the error with which the rank ended."""
    follows: bool = False
    """The error is another rank's doing: a connection that broke, a collective that timed out."""
    stacks: dict[str, str] = field(default_factory=dict)
    """Python stacks by thread; only where somebody asked."""

    @property
    def where(self) -> str:
        """For a sentence: `"rank 2 (node-a, pid 4711)"`."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


class Heartbeats:
    """The files of all ranks, and how long each has been as it is.

    Args:
        folder: shared by all ranks; created.
        world_size: ranks.
    """

    def __init__(self, folder: Path, world_size: int) -> None:
        self.folder, self.world_size = folder, world_size
        self._asking = folder / "asking"
        self._seen: dict[int, tuple[int, int, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, beat: Beat) -> None:
        """Replace the rank's file."""
        path = self._path(beat.rank)
        staging = path.with_suffix(".tmp")
        staging.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        staging.replace(path)

    def read(self) -> dict[int, Beat]:
        """Every rank's last beat; a rank that never said anything has a `Beat` of count -1."""
        return {rank: self._read(rank) for rank in range(self.world_size)}

    def silent(self, beats: dict[int, Beat]) -> dict[int, float]:
        """Seconds for which each rank's beat has been as it is, as far as this reader has seen.

        Infinite where the rank's process was on this host and is no more: no need to wait for what cannot come.
        """
        now, here = time.monotonic(), socket.gethostname()
        for rank, beat in beats.items():
            if self._seen.get(rank, (None, None))[:2] != (beat.pid, beat.count):
                self._seen[rank] = (beat.pid, beat.count, now)
        return {
            rank: math.inf if beat.host == here and not _runs(beat.pid) else now - self._seen[rank][2]
            for rank, beat in beats.items()
        }

    @property
    def asked(self) -> bool:
        """Whether ranks are to add their stacks."""
        return self._asking.exists()

    def ask(self, asking: bool) -> None:
        """Ask all ranks for their stacks, or ask no more."""
        if asking:
            self._asking.touch()
        else:
            self._asking.unlink(missing_ok=True)

    def _read(self, rank: int) -> Beat:
        try:
            return Beat(**json.loads(self._path(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return replace(_UNKNOWN, rank=rank)

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"


_UNKNOWN = Beat(rank=-1, host="unknown host", pid=-1, count=-1)


def _runs(pid: int) -> bool:
    """Whether the process is there; one that nobody has collected yet (a zombie) is not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # somebody else's process, or a system without /proc
        return True


def group_key(name: str, ranks: list[int]) -> str:
    """Such as `"tensor 0,1"`: the same on all members, and `members` reads it."""
    return f"{name} {','.join(map(str, ranks))}"


def members(key: str) -> list[int]:
    """The ranks in a key made by `group_key`."""
    return [int(rank) for rank in key.rpartition(" ")[2].split(",")]
