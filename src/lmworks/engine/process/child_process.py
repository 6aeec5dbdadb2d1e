"""An engine in a process of its own, started, watched and started again. Knows no request and never imports torch.

One thread per engine starts the process, reads its reports, and notices when it dies or hangs. It outlives every
process it starts, for the kernel ends them with the thread.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import EngineError, EngineUnavailableError, LMWorksError, require
from lmworks.engine.process.exchange import Command, Failed, Load, ModelInfo, Ping, Pong, Stop
from lmworks.engine.stats import EngineStats

if TYPE_CHECKING:
    from lmworks.engine.process.wire import Channel

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "restarting", "failed", "stopped"]

IMPORT = "import sys; sys.path[:] = sys.argv[3:]; from lmworks.engine.process.child import main"
PROGRAM = f"{IMPORT}; main(*map(int, sys.argv[1:3]))"


@dataclass(frozen=True)
class Restarts:
    """When a process is given up, and how patiently it is started again."""

    backoff_seconds: float = 0.5
    """Before the first new start; doubled after every early death."""
    max_backoff_seconds: float = 30.0
    early_seconds: float = 30.0
    """A process that died sooner after it was ready died early."""
    max_early_deaths: int = 5
    """In a row; one more ends the engine for good."""
    hang_seconds: float = 120.0
    """A loop that did not go round for so long hangs, and its process is killed. Loading is not limited."""
    poll_seconds: float = 1.0
    """How often the thread looks up while nothing comes."""


class EngineProcess:
    """Keeps one engine's process running.

    Args:
        load: which engine.
        on_reports: gets the reports of each round, from this object's thread.
        on_loss: told why the process is gone; whatever it was asked will not be answered.
        restarts: how to deal with deaths.

    Raises:
        MissingExtraError: what the two processes speak is not installed.
    """

    def __init__(
        self,
        load: Load,
        on_reports: Callable[[Sequence[Any]], None],
        on_loss: Callable[[LMWorksError], None],
        restarts: Restarts = Restarts(),
    ) -> None:
        require("msgpack", "serve")
        self.state: State = "loading"
        self.info: ModelInfo | None = None
        """Of the latest process that was ready."""
        self.error: LMWorksError = EngineUnavailableError(f"the model {load.path} is being loaded", "Try again later")
        """What to tell whoever asks while the state is not `ready`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._load, self._restarts = load, restarts
        self._on_reports, self._on_loss = on_reports, on_loss
        self._channel: Channel | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._early_deaths = 0
        self._ready_since: float | None = None
        self._thread = threading.Thread(target=self._supervise, name="lmworks-engine-process", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def send(self, command: Command) -> None:
        """Send a command.

        Raises:
            LMWorksError: the engine is not ready.
        """
        channel = self._channel
        if self.state != "ready" or channel is None:
            raise self.error.again()
        channel.send([command])

    def wait_until_ready(self, seconds: float | None = None) -> ModelInfo:
        """Wait for the engine.

        Raises:
            LMWorksError: why it cannot be opened, or that it is not ready in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.state in ("ready", "failed", "stopped"), seconds)
            if self.state != "ready" or self.info is None:
                raise self.error.again()
            return self.info

    def close(self, seconds: float = 2.0) -> None:
        """Have the process end, at once where it is not ready; killed when it takes longer. May be repeated."""
        self._closing.set()
        channel = self._channel
        if channel is not None:
            if self.state == "ready":
                channel.send([Stop()])
            else:
                self._kill()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._kill()
            self._thread.join()

    def _supervise(self) -> None:
        """The thread."""
        while True:
            failure = self._run_once()
            if self._closing.is_set():
                failure = EngineError("the engine was shut down", "Start it again")
                self._set("stopped", failure)
                self._on_loss(failure)
                return
            lived = monotonic() - self._ready_since if self._ready_since is not None else 0.0
            self._early_deaths = 0 if lived > self._restarts.early_seconds else self._early_deaths + 1
            never_ready = self.info is None
            hopeless = isinstance(failure, Failed) and failure.at_load and never_ready
            error = failure.error if isinstance(failure, Failed) else failure
            if hopeless or self._early_deaths > self._restarts.max_early_deaths:
                self._set("failed", error)
                self._on_loss(error)
                return
            seconds = min(
                self._restarts.backoff_seconds * 2 ** max(0, self._early_deaths - 1), self._restarts.max_backoff_seconds
            )
            log.error("%s; it is started again in %.1f s", error.problem, seconds)
            told = EngineUnavailableError(error.problem, "It is started again; try again later")
            self._set("loading" if never_ready else "restarting", told)
            self._on_loss(told)
            self._closing.wait(seconds)

    def _run_once(self) -> Failed | LMWorksError:
        """Start a process and read its reports until it ends; why it did."""
        from lmworks.engine.process.wire import Channel

        self._ready_since = None
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), *sys.path]
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        channel = self._channel = Channel(ours)
        self._process = process
        failed: Failed | None = None
        channel.send([self._load])
        if self._closing.is_set():
            process.kill()
        heard = asked = monotonic()
        hung = False
        for frame in channel.receive(self._restarts.poll_seconds):
            now = monotonic()
            if frame:
                heard = now
            for report in frame:
                if isinstance(report, ModelInfo):
                    self.info, self._ready_since = report, now
                    self._set("ready", EngineUnavailableError("the engine has just ended", "Try again later"))
                elif isinstance(report, Failed):
                    failed = report
                elif isinstance(report, EngineStats):
                    self._keep(report)
            self._on_reports([r for r in frame if not isinstance(r, ModelInfo | Failed | Pong)])
            if self._ready_since is not None:
                if now - heard > self._restarts.hang_seconds:
                    hung = True
                    process.kill()
                elif now - asked > self._restarts.hang_seconds / 4:
                    asked = now
                    channel.send([Ping()])
        self._channel = None
        channel.close()
        status = process.wait()
        return failed or EngineError(*_obituary(status, hung=hung, ready=self._ready_since is not None))

    def _keep(self, told: EngineStats) -> None:
        """Remember what the engine was given since it was opened, for the next process."""
        weights = (told.weight_path, told.weight_version) if told.weight_path else self._load.weights
        if weights != self._load.weights or told.adapters != self._load.adapters:
            self._load = replace(self._load, weights=weights, adapters=told.adapters)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _set(self, state: State, error: LMWorksError) -> None:
        with self._changed:
            self.state, self.error = state, error
            self._changed.notify_all()


def _obituary(status: int, *, hung: bool, ready: bool) -> tuple[str, str]:
    """How a process died, and what may be done about it."""
    when = "" if ready else " while it was loading the model"
    if hung:
        return "the engine's process hung and was killed", "See the log"
    if status < 0:
        name = signal.Signals(-status).name
        remedy = "The machine may be short of memory" if name == "SIGKILL" else "See the log"
        return f"the engine's process was ended by {name}{when}", remedy
    return f"the engine's process ended with status {status}{when}", "See the log"
