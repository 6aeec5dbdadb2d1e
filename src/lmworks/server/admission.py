"""Who may come in now: nobody while the server drains, and nobody who has more than a fair share already.

Plain ASGI around all routes; probes always pass. Knows no engine: its queue has limits of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lmworks.core.errors import EngineUnavailableError, LMWorksError, RateLimitError
from lmworks.protocol.errors import error_reply
from lmworks.server.config import AppConfig
from lmworks.server.gate import is_open
from lmworks.server.keys import identity
from lmworks.server.replies import error_response

MANY_CLIENTS = 10_000
"""Beyond so many, those whose allowance is whole again are forgotten."""


class Turnstile:
    """Counts who is inside. One event loop's own."""

    def __init__(self, config: AppConfig, clock: Callable[[], float] = monotonic) -> None:
        self.draining = False
        """Nobody comes in any more."""
        self.inside = 0
        """Requests being answered, probes apart."""
        self._concurrent, self._per_minute = (
            config.max_concurrent_requests_per_key,
            config.max_requests_per_minute_per_key,
        )
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._allowances: dict[str, tuple[float, float]] = {}
        """Client to requests left and when that was counted: a bucket that fills evenly."""

    def enter(self, client: str) -> None:
        """Let a client's request in.

        Raises:
            EngineUnavailableError: the server drains.
            RateLimitError: the client has too many requests running, or had too many within a minute. A request that
                is refused counts for neither.
        """
        if self.draining:
            raise EngineUnavailableError("the server is shutting down", "Try again later, or another server")
        if self._concurrent is not None and self._running[client] >= self._concurrent:
            raise RateLimitError(
                f"this key has {self._running[client]} requests running, of {self._concurrent} at a time",
                "Wait for one to finish",
            )
        if self._per_minute is not None:
            self._take(client, self._per_minute)
        self._running[client] += 1
        self.inside += 1

    def leave(self, client: str) -> None:
        """The request has ended."""
        self.inside -= 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    def _take(self, client: str, limit: int) -> None:
        now = self._clock()
        left, since = self._allowances.get(client, (float(limit), now))
        left = min(limit, left + (now - since) * limit / 60)
        if left < 1:
            seconds = math.ceil((1 - left) * 60 / limit)
            raise RateLimitError(
                f"this key has used its {limit} requests per minute", f"Wait {seconds} s", retry_after_seconds=seconds
            )
        self._allowances[client] = (left - 1, now)
        if len(self._allowances) > MANY_CLIENTS:
            self._allowances = {
                name: (left, since)
                for name, (left, since) in self._allowances.items()
                if left + (now - since) * limit / 60 < limit
            }


class Admission:
    """Asks the turnstile for every request but probes and the page's files."""

    def __init__(self, app: ASGIApp, turnstile: Turnstile) -> None:
        self._app, self._turnstile = app, turnstile

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 429 or 503, or pass the request on."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        client = client_of(scope)
        try:
            self._turnstile.enter(client)
        except LMWorksError as error:
            await error_response(error_reply(error))(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._turnstile.leave(client)


def client_of(scope: Scope) -> str:
    """Whose request it is: the key's holder, or an address where there is no key."""
    given = Headers(scope=scope).get("authorization", "").encode("latin-1")
    if given:
        return identity(given)
    address = scope.get("client")
    return address[0] if address else ""
