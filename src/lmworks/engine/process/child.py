"""The main program of an engine's process: open the engine that the parent names, then run its loop.

It ends with its parent, however that ends: it ignores the signals of a terminal or a service manager, which are the
parent's to answer, and leaves when the parent hangs up. Knows nothing of who asks for what.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from lmworks.core.errors import EngineError, LMWorksError
from lmworks.core.telemetry import subscribed
from lmworks.engine.config import EngineConfig
from lmworks.engine.process.exchange import Command, Failed, Load
from lmworks.engine.process.wire import Channel

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`: the signal to get when the parent dies."""
FLUSH_SECONDS = 5.0


def main(descriptor: int, parent: int) -> None:
    """Serve the parent at the other end of a socket.

    Args:
        descriptor: of the connected socket.
        parent: process id; another one's child by now means that it is dead already.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    frames = channel.receive()
    (load,) = next(frames)
    commands: SimpleQueue[Command] = SimpleQueue()
    threading.Thread(target=_listen, args=(frames, commands), name="lmworks-commands", daemon=True).start()
    ready = False
    try:
        assert isinstance(load, Load)
        run = _opened(load, channel, commands)
        ready = True
        run()
    except Exception as error:
        if isinstance(error, LMWorksError):
            failure: LMWorksError = error
        else:
            log.exception("the engine failed")
            failure = EngineError(f"the engine failed: {error!r}", "See the log, then start it again")
        channel.send([Failed(failure, at_load=not ready)])
        channel.flush(FLUSH_SECONDS)
        _leave(1)
    _leave(0)


def _opened(load: Load, channel: Channel, commands: SimpleQueue[Command]) -> Any:
    """Open the engine and tell the parent what it is; returns what runs it until it is told to stop."""
    from lmworks.engine.process.loop import EngineLoop
    from lmworks.engine.process.opening import open_engine, restore
    from lmworks.engine.weights.loading import (
        serving_device,
    )  # the first import of torch, when commands are listened to already

    config = EngineConfig.parse(load.config)
    if serving_device(config).type == "cpu":
        config = config.for_server()
    engine, info, roofline = open_engine(Path(load.path), config, load.kind)
    restore(engine, load)
    gc.collect()
    gc.freeze()  # what was loaded lives as long as the process; collections need not look at it
    loop = EngineLoop(engine, info, channel.send, roofline, commands)

    def run() -> None:
        with subscribed(loop.reports.append):
            loop.run()

    channel.send([info])
    return run


def _listen(frames: Iterator[Sequence[Any]], commands: SimpleQueue[Command]) -> None:
    """The thread that takes commands in; when the parent is gone, nobody is left to work for."""
    for frame in frames:
        for command in frame:
            commands.put(command)
    _leave(0)


def _leave(status: int) -> None:
    """End at once: threads of libraries may be in the middle of anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when the parent's thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _leave(0)
