"""uvicorn, ended in order: while requests finish it still answers probes, and a second signal means now.

Knows no route.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from time import monotonic
from types import FrameType

import uvicorn

from lmworks.server.admission import Turnstile

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IDLE_SECONDS = 75
"""How long a connection that asks nothing stays open: longer than clients keep theirs, or they ask while it closes."""
CLOSING_SECONDS = 1
"""For what still runs when the drain is over to notice that it is cancelled."""


class DrainingServer(uvicorn.Server):
    """A server that lets nobody in, waits for those inside, and only then stops listening.

    Args:
        settings: uvicorn's.
        turnstile: knows who is inside.
        drain_seconds: the longest wait.
    """

    def __init__(self, settings: uvicorn.Config, turnstile: Turnstile, drain_seconds: float) -> None:
        super().__init__(settings)
        self._turnstile, self._drain_seconds = turnstile, drain_seconds
        self._deadline: float | None = None
        self.signaled = False
        """Whether somebody asked for the end."""

    @property
    def draining(self) -> bool:
        """Whether the end has begun."""
        return self._turnstile.draining

    def drain(self) -> None:
        """Begin to stop; a second call stops at once. Any thread may call, and signal handlers."""
        if self._deadline is None:
            self._deadline = monotonic() + self._drain_seconds
            self._turnstile.draining = True
        else:
            self.stop_now()

    def stop_now(self) -> None:
        """Stop without waiting for anyone."""
        self._deadline = monotonic()
        self._turnstile.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to leave the main loop: uvicorn asks ten times a second."""
        if self._deadline is not None and (not self._turnstile.inside or monotonic() >= self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGINT and SIGTERM, and do not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(_: int, __: FrameType | None) -> None:
            self.signaled = True
            self.drain()

        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
