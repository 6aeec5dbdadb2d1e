"""Commands and reports as bytes on a socket between two processes of one machine. Knows no engine.

MessagePack with an extension per type of value, and nothing else: what comes in can only become one of these values,
never code. A frame is one MessagePack value, so a stream of them needs no lengths.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from operator import attrgetter
from typing import Any

import msgpack

from lmworks.core import errors
from lmworks.core.generation import TokenLogprob
from lmworks.core.sampling import SamplingParams
from lmworks.core.telemetry import Event
from lmworks.engine.outputs import Delta
from lmworks.engine.process.exchange import Abort, Call, Failed, Load, ModelInfo, Ping, Pong, Refused, Result, Stop
from lmworks.engine.request import Request
from lmworks.engine.stats import EngineStats

VALUES: tuple[type, ...] = (
    Delta, TokenLogprob, EngineStats, Event, Request, Abort, Call, Ping, Stop, Load, ModelInfo, Pong, Refused, Result,
    Failed,
)  # fmt: skip
"""Dataclasses that travel, as a tuple of their fields; the place here is the extension's number."""
PARAMS, ERROR = 100, 101
"""Extensions of the two that are no dataclasses."""
MAX_FRAME_BYTES = 2**30
READ_BYTES = 2**18


def _getter(kind: type) -> Callable[[Any], Any]:
    names = [f.name for f in fields(kind)]
    if len(names) > 1:
        return attrgetter(*names)  # a tuple, made in C
    return lambda value: tuple(getattr(value, name) for name in names)


_NUMBERS: dict[type, tuple[int, Callable[[Any], Any]]] = {kind: (i, _getter(kind)) for i, kind in enumerate(VALUES)}


def encode(values: Sequence[object]) -> bytes:
    """A frame.

    Raises:
        RequestError: a number has more than 64 bits.
    """
    return msgpack.packb(values, default=_extension, unicode_errors="surrogatepass")


def _extension(value: object) -> msgpack.ExtType:
    kind = type(value)
    if kind in _NUMBERS:
        number, values = _NUMBERS[kind]
        return msgpack.ExtType(number, encode(values(value)))
    if isinstance(value, SamplingParams):
        return msgpack.ExtType(PARAMS, encode(value.model_dump(exclude_defaults=True)))  # type: ignore[arg-type]
    if isinstance(value, errors.LMWorksError):
        known = next(k for k in kind.__mro__ if getattr(errors, k.__name__, None) is k)
        more = (
            {name: v for name, v in vars(value).items() if name not in ("problem", "remedy")} if known is kind else {}
        )
        return msgpack.ExtType(ERROR, encode((known.__name__, value.problem, value.remedy, more)))
    if isinstance(value, int):
        raise errors.RequestError("a number of the request has more than 64 bits", "Use smaller ones")
    raise TypeError(f"a {kind.__name__} does not travel")


def _value(number: int, data: bytes) -> Any:
    content = _decode(data)
    if number == PARAMS:
        return SamplingParams.model_validate(content)
    if number == ERROR:
        name, problem, remedy, more = content
        kind = getattr(errors, name)
        assert issubclass(kind, errors.LMWorksError)
        return kind(problem, remedy, **more)
    return VALUES[number](*content)


_OPTIONS: dict[str, Any] = {
    "use_list": False, "strict_map_key": False, "unicode_errors": "surrogatepass", "ext_hook": _value
}  # fmt: skip


def _decode(data: bytes) -> Any:
    return msgpack.unpackb(data, **_OPTIONS)


class Channel:
    """One end of a connected stream socket.

    Sending never waits: what the other side does not take at once is left to a thread, which is started when that
    first happens.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._backlog = bytearray()
        """Unsent, in order; while it is not empty only the thread sends."""
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._closed = False

    def send(self, values: Sequence[object]) -> None:
        """Send a frame; one that nobody is left to receive is dropped.

        Raises:
            RequestError: see `encode`.
        """
        data = encode(values)
        with self._changed:
            if self._closed:
                return
            sent = 0
            if not self._backlog:
                try:
                    sent = self._socket.send(data, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    return  # the reader learns of it
                if sent == len(data):
                    return
            self._backlog += memoryview(data)[sent:]
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="lmworks-channel", daemon=True)
                self._writer.start()
            self._changed.notify_all()

    def receive(self, poll_seconds: float | None = None) -> Iterator[Sequence[Any]]:
        """Frames until the other end is closed.

        Args:
            poll_seconds: yield an empty frame when so much time passed without one.
        """
        unpacker = msgpack.Unpacker(max_buffer_size=MAX_FRAME_BYTES, **_OPTIONS)
        while self._readable(poll_seconds):
            try:
                data = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                yield ()
                continue
            except OSError:
                return
            if not data:
                return
            unpacker.feed(data)
            yield from unpacker

    def flush(self, seconds: float) -> None:
        """Wait until all is sent, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._backlog or self._closed, seconds)

    def close(self) -> None:
        """Hang up; both ends' readers come to their end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._writer is not None:
            self._writer.join()
        self._socket.close()

    def _readable(self, seconds: float | None) -> bool:
        """Wait for data or a timeout; False once closed from this side."""
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
        except (OSError, ValueError):
            return False
        return not self._closed

    def _write(self) -> None:
        """The thread: send the backlog."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog or self._closed)
                if self._closed:
                    return
                piece = bytes(memoryview(self._backlog)[:READ_BYTES])
            try:
                sent = self._socket.send(piece)
            except OSError:
                sent = len(self._backlog)  # nobody is left to receive it
            with self._changed:
                del self._backlog[:sent]
                self._changed.notify_all()
