"""What a run leaves in words and figures: metrics, events, sinks, the progress bar and sentences for a person.

The first rank writes for all; on the others the same calls do nothing. Knows no trainer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmworks.core.errors import disk_errors
from lmworks.core.progress import Bar, bar, say
from lmworks.core.telemetry import emit
from lmworks.train.config import TrainConfig
from lmworks.train.events import EventLog
from lmworks.train.metrics import MetricsLog, read_metrics
from lmworks.train.signals import RunWatch
from lmworks.train.sinks import Sink, open_sinks

Record = dict[str, Any]
SETTINGS_FILE = "run.json"
"""What the run was started with, in its folder."""


class RunLog:
    """The records of one run.

    Args:
        folder: of the run.
        config: the run.
        writes: whether the caller is the one that does.
    """

    def __init__(self, folder: Path, config: TrainConfig, *, writes: bool) -> None:
        self.metrics_file = folder / "metrics.jsonl"
        self.settings: Mapping[str, Any] = {}
        """What whoever built the run would need to build it again; JSON-able, written once the run begins."""
        self._folder, self._config, self._writes = folder, config, writes
        self._metrics, self._events = MetricsLog(self.metrics_file), EventLog(folder / "events.jsonl")
        self._watch = RunWatch()
        self._sinks: list[Sink] = []
        self._bar: Bar | None = None
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether something could not be written, which the first rank alone knows; `raise_error` tells all."""
        return self._error is not None

    def raise_error(self, from_first: Callable[[Callable[[], None]], None]) -> None:
        """Raise what went wrong, if anything did. All ranks call it.

        Args:
            from_first: does something on the first rank and raises its error on all.

        Raises:
            DiskFullError: the device is full.
            Exception: whatever else it was.
        """

        def check() -> None:
            if self._error is not None:
                raise self._error

        with disk_errors(self.metrics_file):
            from_first(check)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep an error for when all ranks can learn of it: raised at once, it would leave the others waiting."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # `raise_error` raises it
            self._error = self._error or error

    def go_on_from(self, step: int, events: int) -> Record:
        """Forget what came after a step; the last record that is left.

        Args:
            step: updates done.
            events: how many were before.
        """
        record: Record = {}
        if self._writes:
            self._metrics.truncate(step)
            self._events.keep(events)
            for record in read_metrics(self.metrics_file):
                self._watch.tell(record)
        return record

    @contextmanager
    def opened(self, done: int) -> Iterator[None]:
        """While the block runs, sinks and the progress bar are there.

        Args:
            done: updates.
        """
        if not self._writes:
            yield
            return
        config = self._config
        if self.settings:
            self._write_settings()
        with (
            bar("training", config.steps, done) as self._bar,
            open_sinks(config.tracking, self._folder, done, config.to_dict()) as self._sinks,
        ):
            yield
        self._bar, self._sinks = None, []

    def _write_settings(self) -> None:
        file = self._folder / SETTINGS_FILE
        staging = file.with_name(f".{file.name}.tmp")
        with disk_errors(file):
            staging.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            staging.replace(file)

    def step(self, record: Record) -> None:
        """Write the record of a step."""
        if not self._writes:
            return
        with self._writing():
            self._metrics.append(record)
            for sink in self._sinks:
                sink.write(record)
        if (sentence := self._watch.tell(record)) is not None:
            self.say(f"step {record['step']}: {sentence}")
        if self._bar is not None:
            self._bar.advance(note=_note(record))

    def back(self, step: int, lost: int) -> None:
        """Take back the records after `step`, of `lost` steps."""
        if self._writes:
            with self._writing():
                self._metrics.truncate(step)
                for sink in self._sinks:
                    sink.back(step)
        if self._bar is not None:
            self._bar.advance(-lost)

    def event(self, event: Mapping[str, Any]) -> None:
        """Write down a step that was not simply made."""
        if self._writes:
            with self._writing():
                self._events.append(event)
            emit("train.guard", **event)

    def say(self, sentence: str) -> None:
        """Tell the person at the terminal."""
        if self._writes:
            say(sentence)


def _note(record: Mapping[str, Any]) -> str:
    """What stands beside the progress bar."""
    loss = f"loss {record['loss']:.3f}" if "loss" in record else "skipped"
    return f"{loss} {record['tokens_per_second']:,.0f} tokens/s"
