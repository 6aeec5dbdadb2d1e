"""Progress bars and one-line status for long work; quiet when the output is not a terminal. Knows no stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


class Bar:
    """Handle of one running progress bar."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Move forward by `amount` and show `note` at the right."""
        self._progress.update(self._task, advance=amount, note=note)  # type: ignore[arg-type]

    def set_total(self, total: float) -> None:
        """Correct the total once it is known."""
        self._progress.update(self._task, total=total)  # type: ignore[arg-type]


@contextmanager
def bar(description: str, total: float | None = None, done: float = 0) -> Iterator[Bar]:
    """Show a progress bar on standard error while the block runs.

    Args:
        description: what is being done.
        total: units of work; None when unknown.
        done: units finished before this run, for resumed work.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=False) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")  # type: ignore[arg-type]
        yield Bar(progress, task)


def say(message: str) -> None:
    """Print one line for the person at the terminal."""
    console.print(message, markup=False, soft_wrap=True)
