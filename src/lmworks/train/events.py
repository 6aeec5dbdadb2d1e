"""`events.jsonl`: every step that was not simply made, one JSON object a line, with the rows it saw.

Knows no guard: it keeps what it is given, and forgets what a resumed run will meet again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import disk_errors

HANG = "hang"
"""What a report of the watchdog has as its `finding`."""


class EventLog:
    """Appends to a file and cuts it back.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Write one line; numbers that JSON lacks become text."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _strict(value) for key, value in event.items()}) + "\n")

    def keep(self, count: int) -> None:
        """Forget all but the first `count` verdicts of the guard: those that the checkpoint at hand remembers.

        Reports of hangs stay: what they tell of will not come again with the same step.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = []
        for line in lines:
            report = f'"finding": "{HANG}"' in line
            count -= not report
            if report or count >= 0:
                kept.append(line)
        staging = self.path.with_name(f".{self.path.name}.tmp")
        with disk_errors(self.path):
            staging.write_text("".join(kept), encoding="utf-8")
            staging.replace(self.path)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a run in order; [] when there were none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _strict(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
