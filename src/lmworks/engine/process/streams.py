"""Who waits for what: reports of an engine's loop, handed to requests on whatever event loops they were made.

All reports of one round wake each event loop once. Knows no engine and no transport.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from lmworks.core.errors import LMWorksError, RequestError
from lmworks.core.telemetry import Event, emit
from lmworks.engine.outputs import Delta
from lmworks.engine.process.exchange import Refused, Report, Result
from lmworks.engine.stats import EngineStats

Item = Delta | Result | LMWorksError


@dataclass(eq=False)
class Stream:
    """Where one request's deltas, or one call's result, go."""

    key: str | int
    """A request id, or a call's number."""
    remaining: int
    """Completions that have not ended."""
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]


class Streams:
    """Everything that is being waited for. Any thread may call."""

    def __init__(self) -> None:
        self._open: dict[str | int, Stream] = {}
        self._lock = threading.Lock()
        self._numbers = count()
        self.stats = EngineStats()
        """The latest report of what had been done and is held."""

    def __len__(self) -> int:
        return len(self._open)

    def request(self, request_id: str, completions: int) -> Stream:
        """Begin to wait for a request.

        Raises:
            RequestError: the id is in use, also by a request whose last deltas are still on their way.
        """
        return self._add(request_id, completions)

    def call(self) -> Stream:
        """Begin to wait for a call's result; `key` is its number."""
        return self._add(next(self._numbers), 1)

    def forget(self, stream: Stream) -> None:
        """Stop waiting; nothing was sent to the engine."""
        with self._lock:
            self._open.pop(stream.key, None)

    def dispatch(self, reports: Iterable[Report]) -> None:
        """Hand out one round of reports; telemetry is emitted here."""
        items: list[tuple[Stream, Item]] = []
        events: list[Event] = []
        with self._lock:
            for report in reports:
                match report:
                    case Delta():
                        self._deliver(items, report.request_id, report, ends=report.finish_reason is not None)
                    case EngineStats():
                        self.stats = report
                    case Event():
                        events.append(report)
                    case Refused():
                        self._deliver(items, report.request_id, report.error, ends=True, whole=True)
                    case Result():
                        self._deliver(items, report.number, report, ends=True)
        for event in events:
            emit(event.name, **event.fields)
        _wake(items)

    def fail(self, error: LMWorksError) -> None:
        """End everything that waits with an error: the engine is gone, and holds nothing any more."""
        with self._lock:
            self.stats = replace(
                self.stats, num_requests_running=0, num_requests_waiting=0, kv_cache_usage=0.0, roofline_ratio=0.0
            )
            items: list[tuple[Stream, Item]] = [(stream, error.again()) for stream in self._open.values()]
            self._open.clear()
        _wake(items)

    def _add(self, key: str | int, completions: int) -> Stream:
        stream = Stream(key, completions, asyncio.get_running_loop(), asyncio.Queue())
        with self._lock:
            if key in self._open:
                raise RequestError(f"request id {key!r} is in use", "Give every request its own id")
            self._open[key] = stream
        return stream

    def _deliver(
        self, items: list[tuple[Stream, Item]], key: str | int, item: Item, *, ends: bool, whole: bool = False
    ) -> None:
        """Note an item for its stream; one that ends the last completion, or the `whole` request, closes the stream."""
        stream = self._open.get(key)
        if stream is None:
            return
        items.append((stream, item))
        stream.remaining -= ends
        if whole or not stream.remaining:
            del self._open[key]


def _wake(items: Sequence[tuple[Stream, Item]]) -> None:
    """Hand over to the event loops, once to each. A loop that is closed has nobody listening."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[tuple[Stream, Item]]] = defaultdict(list)
    for stream, item in items:
        loops[stream.loop].append((stream, item))
    for loop, own in loops.items():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_put, own)


def _put(items: Sequence[tuple[Stream, Any]]) -> None:
    for stream, item in items:
        stream.queue.put_nowait(item)
