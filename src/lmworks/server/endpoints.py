"""From a path and a body to an answer without HTTP, for lines of batches. Knows no batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from lmworks.protocol.wire import WireResponse
from lmworks.server import chat, completions, embeddings, responses
from lmworks.server.answering import Create, Prepare, answer_whole
from lmworks.server.caller import Caller
from lmworks.server.state import ServerState

Answer = Callable[[ServerState, bytes, Caller], Awaitable[WireResponse]]


async def _whole(prepare: Prepare, state: ServerState, body: bytes, caller: Caller) -> WireResponse:
    return await answer_whole(state, prepare, body, caller)


ANSWERS: Mapping[str, Create] = {
    "/v1/chat/completions": partial(_whole, chat.prepare),
    "/v1/completions": partial(_whole, completions.prepare),
    "/v1/responses": partial(_whole, responses.prepare),
    "/v1/embeddings": embeddings.create,
}
"""Path to what answers it; the keys are `protocol.files.ENDPOINTS`."""
