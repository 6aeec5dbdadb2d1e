"""Layers around the routes: the headers that all responses carry, the key, and the net under unforeseen failures.

Plain ASGI, so that streams and disconnects pass through untouched. Knows no route but those that stay open.
"""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmworks.protocol.errors import authentication_reply, error_reply
from lmworks.server.keys import Keys
from lmworks.server.replies import error_response

logger = logging.getLogger(__name__)

PROBES = frozenset({"/live", "/ready", "/health", "/version", "/load", "/metrics"})
"""Asked by machines that hold no key, and answered however busy the server is."""
OPEN = PROBES | {"/", "/openapi.json"}
"""What needs no key; the page's own files under `OPEN_PREFIX` do not either."""
OPEN_PREFIX = "/page/"
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
"""A client's name for its request that logs can hold as it is."""


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_PREFIX)


class ApiKey:
    """Refuses requests without a right bearer token; whatever is not open is closed."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] == "http" and not is_open(scope["path"]):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not self._keys.is_user(given):
                await error_response(authentication_reply())(scope, receive, send)
                return
        await self._app(scope, receive, send)


class CommonHeaders:
    """Adds a request id, the client's own if it sent one, and forbids browsers to guess content types."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and complete its response's headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        given = Headers(scope=scope).get("x-request-id", "")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Failures:
    """Logs an error nobody foresaw and answers 500, inside the layers that complete the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; once a response has begun, only its connection can still be closed."""
        begun = scope["type"] != "http"

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception as error:
            if begun:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await error_response(error_reply(error))(scope, receive, send)
