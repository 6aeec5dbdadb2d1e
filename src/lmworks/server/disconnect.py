"""Work that ends when its client goes away, streamed or not. Knows no endpoint.

Starlette cancels neither plain handlers nor, on every ASGI version, streams: whoever waits for an engine must
watch the connection too, or an abandoned request goes on holding cache blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, cancelling it when the client closes the connection. The body must have been read before.

    Raises:
        ClientDisconnect: the client went away first; `work` has been cancelled and has finished.
    """
    return await _race(asyncio.create_task(work), request.receive)


class EventStream(Response):
    """Server-sent events from an asynchronous generator, which is closed however the response ends.

    Args:
        first: the events that are ready; fetched beforehand, so that an early error still gets its own status.
        rest: the events to come.
    """

    media_type = "text/event-stream"

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the client is gone."""
        try:
            await _race(asyncio.create_task(self._send_all(send)), receive)
        except (ClientDisconnect, OSError):
            pass  # nobody is left to be told
        finally:
            await self._rest.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first.encode(), "more_body": True})
        async for text in self._rest:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _race(work: asyncio.Task[T], receive: Receive) -> T:
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        watcher.cancel()
        await asyncio.gather(work, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
