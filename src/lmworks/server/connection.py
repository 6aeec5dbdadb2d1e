"""One client's connection, with an end to patience: slow headers, slow bodies, unread answers, too many at once.

Without limits a few clients that send a byte a minute (slow loris) hold every connection. uvicorn limits none of this
for its fast parser, so its protocol is extended here. Knows no route.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lmworks.protocol.errors import ErrorReply
from lmworks.server.config import ServeConfig

TIMEOUT = ErrorReply(408, "The request was not sent in time. Send it faster.", "invalid_request_error")
TOO_LARGE = ErrorReply(431, "The request's headers are too large. Send fewer or shorter ones.", "invalid_request_error")
TOO_MANY = ErrorReply(
    503, "The server has too many connections. Try again later.", "server_error", None, "too_many_connections",
    {"Retry-After": "1"},
)  # fmt: skip
NOT_HTTP = ErrorReply(400, "The request is not valid HTTP. Send HTTP/1.1.", "invalid_request_error")
REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Connection(HttpToolsProtocol):
    """uvicorn's connection within limits; `limited` makes the class for a configuration."""

    max_connections: int
    max_header_bytes: int
    header_timeout: float
    body_timeout: float

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._timer: asyncio.TimerHandle | None = None
        """Ends the patience with what the client is sending; None while it owes nothing."""
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_body = False
        """Headers were received and the end of their body was not."""
        self._header_bytes = 0
        """Received of headers that are not complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Turn the client away, or give it time to send headers."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(TOO_MANY)
        else:
            self._expect(self.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is owed any more."""
        self._expect(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on, while the clock of what is incomplete runs."""
        if self.transport.is_closing():
            return
        if self._timer is None:
            self._expect(self.header_timeout)
        super().data_received(data)
        if self._timer is not None and not self._in_body:
            self._header_bytes += len(data)
            if self._header_bytes > self.max_header_bytes:
                self._refuse(TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Refuse headers that came in one large piece; else give the client time to send the body."""
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > self.max_header_bytes:
            self._refuse(TOO_LARGE)
            return
        self._in_body, self._header_bytes = True, 0
        self._expect(self.body_timeout)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless its headers were refused."""
        if self._in_body:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there: the client owes nothing."""
        if self._in_body:
            self._in_body = False
            self._expect(None)
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read: give it time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.body_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed in the form that all errors have."""
        self._refuse(NOT_HTTP)

    def _expect(self, seconds: float | None) -> None:
        """Set the timer for what the client owes."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._refuse, TIMEOUT)

    def _refuse(self, reply: ErrorReply) -> None:
        """Answer, unless an answer has begun already, and hang up."""
        self._expect(None)
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not (cycle.response_started or self.pipeline):
            body = reply.to_json().encode()
            head = [f"HTTP/1.1 {reply.status} {REASONS[reply.status]}", "Content-Type: application/json"]
            head += [f"{name}: {value}" for name, value in reply.headers.items()]
            head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            self.transport.write("\r\n".join(head).encode() + body)
        self.transport.close()


def limited(config: ServeConfig) -> type[Connection]:
    """The class of a server's connections."""
    limits = ("max_connections", "max_header_bytes", "header_timeout", "body_timeout")
    return type("LimitedConnection", (Connection,), {name: getattr(config, name) for name in limits})
