"""HTTP responses made of the protocol's values: JSON, event streams, OpenAI-shaped errors. Knows no endpoint."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lmworks.core.errors import LMWorksError
from lmworks.protocol.errors import ErrorReply, error_reply
from lmworks.protocol.wire import WireResponse
from lmworks.server.disconnect import EventStream, unless_disconnected

logger = logging.getLogger(__name__)


def json_reply(value: WireResponse) -> Response:
    """A response body."""
    return Response(value.model_dump_json(), media_type="application/json")


def error_response(reply: ErrorReply) -> Response:
    """An error body with its status and headers."""
    return Response(reply.to_json(), reply.status, reply.headers, media_type="application/json")


async def stream_reply(
    request: Request, events: AsyncGenerator[str, None], failing: Callable[[ErrorReply], str]
) -> Response:
    """Stream events once the first is there; until then an error is an ordinary error response.

    Args:
        request: whose client may leave.
        events: framed.
        failing: the events that end a stream which failed when its status had long been sent.

    Raises:
        ClientDisconnect: the client left before the first event.
        LMWorksError: the request failed before the first event.
    """

    async def begin() -> str:
        return await anext(events)

    try:
        first = await unless_disconnected(request, begin())
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, _ending_with_errors(events, failing))


async def _ending_with_errors(
    events: AsyncGenerator[str, None], failing: Callable[[ErrorReply], str]
) -> AsyncGenerator[str, None]:
    try:
        async for text in events:
            yield text
    except ClientDisconnect:
        raise
    except Exception as error:
        if not isinstance(error, LMWorksError):
            logger.exception("a stream failed")
        yield failing(error_reply(error))
    finally:
        await events.aclose()
