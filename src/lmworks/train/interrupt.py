"""Ctrl-C and SIGTERM ask a run to stop after the step at hand, so that nothing is lost. Knows no trainer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lmworks.core.progress import say


class StopRequest:
    """Which signal asked to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def agreed(self, greatest: Callable[[int], int]) -> signal.Signals | None:
        """The signal that asks all ranks to stop, if one of them was asked to.

        Args:
            greatest: of what all ranks have.
        """
        number = greatest(int(self.signal or 0))
        return signal.Signals(number) if number else None


def exit_code(number: signal.Signals) -> int:
    """What a shell reports for a process stopped by this signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Record SIGINT and SIGTERM instead of dying from the first; a second one acts as it would have.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        signal.signal(number, before[signal.Signals(number)])
        say("stopping after this step; once more to stop at once")

    try:
        for number in before:
            signal.signal(number, handle)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
