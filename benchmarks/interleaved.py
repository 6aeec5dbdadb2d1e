"""Cases run in turn by processes of their own, and what is told of them: the frame of the engine's benchmarks.

A contestant is a process that loads one model once and then answers lines of JSON: a case in, `{"seconds": …, "tokens":
…}` out. While one works the others wait for their line and use no processor, so a slow minute of the machine meets all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("LMWORKS_PEERS", HERE.parent / ".peers")) / "bin" / "python"
"""The interpreter of the environment that `make peers` makes."""
MOST_COMPLAINT = 2000
"""Characters shown of what a process that ended wrote to its standard error."""


class Runs(Protocol):
    """Whatever answers cases under a name."""

    name: str

    def start(self) -> None:
        """Load the model."""
        ...

    def run(self, case: Mapping[str, Any]) -> dict[str, float]:
        """Answer one case."""
        ...

    def stop(self) -> None:
        """Give everything back."""
        ...


@dataclass
class Contestant:
    """A process that answers cases."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None
    _complaints: IO[str] | None = None

    def start(self) -> None:
        """Load the model.

        Raises:
            RuntimeError: the process ended instead.
        """
        self._complaints = TemporaryFile("w+")  # noqa: SIM115 - `stop` closes it
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True,
            env=os.environ | dict(self.environment),
        )  # fmt: skip
        self._answer()

    def run(self, case: Mapping[str, Any]) -> dict[str, float]:
        """Answer one case.

        Raises:
            RuntimeError: the process ended instead.
        """
        assert self._process is not None, "started first"
        assert self._process.stdin is not None, "opened as a pipe"
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None, "opened as a pipe"
            assert self._process.stdout is not None, "opened as a pipe"
            assert self._complaints is not None, "opened with the process"
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._complaints.close()

    def _answer(self) -> dict[str, float]:
        assert self._process is not None, "started first"
        assert self._process.stdout is not None, "opened as a pipe"
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        assert self._complaints is not None, "opened with the process"
        status = self._process.wait()
        self._complaints.seek(0)
        raise RuntimeError(f"{self.name} ended with status {status}: {self._complaints.read()[-MOST_COMPLAINT:]}")


def answer_lines(answer: Callable[[dict[str, Any]], dict[str, float]]) -> None:
    """The other side of a `Contestant`: say that the model is loaded, then answer every line."""
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def spread(samples: Sequence[float]) -> float:
    """Distance of the quartiles as a share of the median; 0 of fewer than three samples."""
    if len(samples) < 3:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / statistics.median(samples)


@contextmanager
def running(contestants: Sequence[Runs]) -> Iterator[None]:
    """Start all, and stop those that were started, whatever happens; told to end, end them first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with ExitStack() as stack:
        for contestant in contestants:
            stack.callback(contestant.stop)
            contestant.start()
        yield


def in_turn(
    contestants: Sequence[Runs],
    cases: Sequence[Mapping[str, Any]],
    rounds: int,
    *,
    warm_up: Sequence[Mapping[str, Any]] | None = None,
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Run every case by every contestant, `rounds` times over.

    Args:
        contestants: who runs, started.
        cases: what they run.
        rounds: how often.
        warm_up: what they run before, unmeasured; all cases where not given.

    Returns:
        Answers by contestant and the case's name. A case's `contestants`, where given, names who runs it; it is told
        the number of its `turn`.
    """
    answers: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(rounds + 1):
        for case in cases if turn or warm_up is None else warm_up:
            for contestant in contestants:
                if contestant.name not in case.get("contestants", [contestant.name]):
                    continue
                began = time.perf_counter()
                answer = contestant.run({**case, "turn": turn})
                seconds = time.perf_counter() - began
                print(f"round {turn}, {case['case']}: {contestant.name}, {seconds:.1f} s", file=sys.stderr)
                if turn:
                    answers.setdefault((contestant.name, case["case"]), []).append(answer)
    return answers


def row(
    case: str, ours: Sequence[float], unit: str, theirs: Mapping[str, Sequence[float]], limit_share: float | None,
    *, less_is_better: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One row against the best of the peers.

    Args:
        case: what was run.
        ours: a value for each round.
        unit: of the values.
        theirs: the same of each peer.
        limit_share: our share of the physical limit.
        less_is_better: the best of the peers has the least, and `ratio` is below 1 where ours is better.
    """
    value = statistics.median(ours)
    medians = {name: statistics.median(samples) for name, samples in theirs.items()}
    best = (min if less_is_better else max)(medians, key=medians.__getitem__, default=None)
    return {
        "case": case, "ours": round(value, 2), "unit": unit, "peer": best,
        "theirs": None if best is None else round(medians[best], 2),
        "ratio": None if best is None else round(value / medians[best], 2),
        "spread": round(spread(ours), 3), "limit_share": None if limit_share is None else round(limit_share, 3),
        "peers": {name: round(median, 2) for name, median in medians.items()},
    }  # fmt: skip


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table for people."""
    for r in rows:
        share = "" if r["limit_share"] is None else f", {r['limit_share']:.0%} of the limit"
        against = "" if r["peer"] is None else f", {r['ratio']}x {r['peer']} ({r['theirs']:,})"
        print(f"{r['case']:<40} {r['ours']:>10,} {r['unit']}{against}{share}, spread {r['spread']:.0%}")


def finish(benchmark: str, rows: Sequence[Mapping[str, Any]], *, save: bool) -> None:
    """Print the table and, last, one JSON object; with `save` keep it under today's date."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    report = {"benchmark": benchmark, "commit": commit, "hardware": hardware(), "rows": list(rows)}
    show(rows)
    if save:
        path = HERE / "results" / f"{date.today()}-{benchmark.replace('_', '-')}.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def hardware() -> str:
    """Processor and cores."""
    name = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark of the engine takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, help="a .gguf file; else SmolLM2-135M-Instruct from the package index")
    parser.add_argument("--quick", action="store_true", help="few rounds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    parser.add_argument("--rounds", type=int, help="how often every case is run")
    return parser
