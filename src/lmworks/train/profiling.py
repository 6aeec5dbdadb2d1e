"""Where the time of a step goes: a trace of a few steps, and a report of the bottlenecks in words.

Knows no trainer: it is told when steps begin and end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lmworks.core.errors import disk_errors
from lmworks.core.progress import say

PHASES = ("data", "forward", "backward", "optimizer")
WARM_UP, STEPS = 2, 3
"""Steps that pass first, while caches fill, and steps that are traced."""

KINDS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "mkldnn_linear", "gemm", "mkl_linear"),
    "attention": ("scaled_dot_product", "flash", "fmha", "varlen", "attention"),
    "copies and casts": ("copy_", "clone", "cat", "index_select", "index_copy_", "gather", "embedding", "memcpy"),
    "optimizer": ("adam", "_foreach", "lerp", "addcdiv", "addcmul"),
    "softmax and loss": ("softmax", "log", "cross_entropy", "amax", "nll_loss"),
    "sums and norms": ("sum", "mean", "norm", "rsqrt", "var"),
}
"""Parts of operators' names by what they do; the first kind that fits counts."""

ADVICE = {
    "matrix products": "The products are the work itself; only fewer tokens, a smaller model or a lower precision "
    "take less.",
    "attention": "Shorter documents or rows (`sequence_length`, `size_schedule`) take less.",
    "copies and casts": "Larger micro-batches spread what is copied once per pass; in bfloat16 weights are cast once "
    "per update, so a larger `batch_tokens` helps too.",
    "optimizer": "It is paid once per update: a larger `batch_tokens` spreads it.",
    "softmax and loss": "It grows with the vocabulary.",
    "sums and norms": "They wait for memory: a lower precision moves fewer bytes.",
    "other": "Many small operations: larger micro-batches make each of them longer.",
}


PhaseListener = Callable[[str, float | None], None]
"""Told a phase's name when it begins, with None, and when it ends, with its seconds."""
_listeners: list[PhaseListener] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark what runs in the block as one of `PHASES`; almost free while nobody profiles or listens."""
    begin = time.perf_counter()
    for listener in _listeners:
        listener(name, None)
    with record_function(f"train/{name}"):
        yield
    for listener in _listeners:
        listener(name, time.perf_counter() - begin)


@contextmanager
def hearing_phases(listener: PhaseListener) -> Iterator[None]:
    """While the block runs, tell of every phase."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@dataclass(frozen=True)
class Operation:
    """One operator or phase in the traced steps."""

    name: str
    calls: int
    own_seconds: float
    """Without what it called."""
    seconds: float


class StepProfiler:
    """Traces a few steps after a warm-up into `trace.json`, and writes `profile.md`.

    Args:
        folder: for both.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._steps, self._begin = 0, 0.0
        self._profile: Any = None
        self.done = False

    def step_begins(self) -> None:
        """Start tracing when the warm-up is over."""
        if self._steps == WARM_UP and self._profile is None and not self.done:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.__enter__()
            self._begin = time.perf_counter()

    def step_ends(self) -> None:
        """Stop tracing after the last step to be traced."""
        self._steps += 1
        if self._steps == WARM_UP + STEPS:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what was traced. Where no step after the warm-up has ended there is nothing, and that is said."""
        if self.done:
            return
        seconds = time.perf_counter() - self._begin
        running, self._profile, self.done = self._profile, None, True
        if running is not None:
            running.__exit__(None, None, None)
        if self._steps <= WARM_UP:
            say(f"no profile: it begins after {WARM_UP} steps, and {self._steps} were made")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.folder):
            running.export_chrome_trace(str(self.folder / "trace.json"))
            operations = [_operation(event) for event in running.key_averages()]
            report = describe(operations, seconds, self._steps - WARM_UP)
            (self.folder / "profile.md").write_text(report, encoding="utf-8")
        say(f"profile of {self._steps - WARM_UP} steps in {self.folder}: {report.splitlines()[2]}")


def describe(operations: Iterable[Operation], seconds: float, steps: int) -> str:
    """The report: phases, kinds of work, the most expensive operators, and what to do about them.

    Args:
        operations: of the traced steps.
        seconds: that they took together.
        steps: how many there were.
    """
    operations = list(operations)
    own = [o for o in operations if not o.name.startswith("train/")]
    by_kind: dict[str, float] = {}
    for operation in own:
        kind = kind_of(operation.name)
        by_kind[kind] = by_kind.get(kind, 0.0) + operation.own_seconds
    total = sum(by_kind.values()) or 1.0
    first, *_ = ranked = sorted(by_kind, key=by_kind.__getitem__, reverse=True) or ["other"]
    lines = [
        "# Where a step's time goes",
        "",
        f"A step took {seconds / steps * 1e3:.1f} ms; {by_kind.get(first, 0.0) / total:.0%} of the work is {first}.",
        "",
    ]
    spent = {o.name.removeprefix("train/"): o.seconds for o in operations if o.name.startswith("train/")}
    lines += [f"- {name}: {spent[name] / seconds:.0%} of the time" for name in PHASES if name in spent]
    outside = 1 - sum(spent.values()) / seconds
    lines += [f"- everything else (guard, records, callbacks): {max(0.0, outside):.0%}", "", "## Work by kind", ""]
    lines += [f"- {kind}: {by_kind[kind] / total:.0%}. {ADVICE[kind]}" for kind in ranked if kind in by_kind]
    if spent.get("data", 0.0) > 0.05 * seconds:
        lines += ["", "Making batches takes more than 5 % of the time: the data is a bottleneck."]
    lines += ["", "## Operators", "", "| operator | calls a step | ms a step | share |", "|---|---|---|---|"]
    for o in sorted(own, key=lambda o: o.own_seconds, reverse=True)[:15]:
        each = o.own_seconds / steps * 1e3
        lines.append(f"| `{o.name}` | {o.calls / steps:.0f} | {each:.2f} | {o.own_seconds / total:.0%} |")
    return "\n".join(lines) + "\n"


def kind_of(operator: str) -> str:
    """What an operator does, one of the keys of `ADVICE`."""
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def _operation(event: Any) -> Operation:
    """From torch's averages, whose times are in microseconds; on an accelerator its own time counts."""
    on_device = torch.cuda.is_available() and event.self_device_time_total > 0
    own = event.self_device_time_total if on_device else event.self_cpu_time_total
    return Operation(event.key, event.count, own / 1e6, event.cpu_time_total / 1e6)
