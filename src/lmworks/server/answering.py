"""The one way of a generating route: read, prepare, run, and write the answer whole or as a stream.

An endpoint brings a function that prepares a `Writer`, which knows the endpoint's schemas. Knows no schema itself.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol

from fastapi import Request, Response

from lmworks.engine.outputs import Delta
from lmworks.protocol.errors import ErrorReply
from lmworks.protocol.wire import WireResponse
from lmworks.server.caller import Caller, caller_of
from lmworks.server.disconnect import unless_disconnected
from lmworks.server.generation import Choice, Job, complete, run
from lmworks.server.recording import Recording
from lmworks.server.replies import json_reply, stream_reply
from lmworks.server.state import ServerState, read_body, state_of


class Writer(Protocol):
    """Writes down one answer in the terms of one endpoint. Events are framed, and "" is none."""

    @property
    def job(self) -> Job:
        """What the engine is asked."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the client wants events."""
        ...

    def opening(self, recording: Recording) -> str:
        """Events before the engine has said anything."""
        ...

    def events(self, index: int, delta: Delta, recording: Recording) -> str:
        """Events that tell what a delta adds to a choice."""
        ...

    def ending(self, recording: Recording) -> str:
        """Events after all choices have ended, with those that end the stream."""
        ...

    def failing(self, reply: ErrorReply) -> str:
        """Events that end a stream half-way."""
        ...

    def whole(self, choices: Sequence[Choice], recording: Recording) -> WireResponse:
        """Everything at once."""
        ...


Prepare = Callable[[ServerState, bytes, Caller], Awaitable[Writer]]
"""From a request's body to the writer of its answer; raises what is wrong with it."""


Create = Callable[[ServerState, bytes, Caller], Awaitable[WireResponse]]
"""From a request's body to its answer, for what generates nothing; raises what is wrong with it."""


async def answer_with(request: Request, create: Create) -> Response:
    """Answer a request whose answer comes at once; see `Create` for the errors."""
    state, body = state_of(request), await read_body(request)

    async def work() -> WireResponse:
        return await create(state, body, caller_of(request))

    return json_reply(await unless_disconnected(request, work()))


async def answer(request: Request, prepare: Prepare) -> Response:
    """Answer a request; see `Prepare` and `generation.run` for the errors."""
    state, arrived = state_of(request), time.perf_counter()
    writer = await prepare(state, await read_body(request), caller_of(request))
    recording = state.recording(writer.job, arrived)
    if writer.stream:
        return await stream_reply(request, _events(writer, recording), writer.failing)
    return json_reply(await unless_disconnected(request, _whole(writer, recording)))


async def answer_whole(state: ServerState, prepare: Prepare, body: bytes, caller: Caller) -> WireResponse:
    """Answer a body that came by another way than a request, such as a line of a batch; errors as in `answer`."""
    writer = await prepare(state, body, caller)
    return await _whole(writer, state.recording(writer.job, time.perf_counter()))


async def _whole(writer: Writer, recording: Recording) -> WireResponse:
    return writer.whole(await complete(writer.job, recording), recording)


async def _events(writer: Writer, recording: Recording) -> AsyncGenerator[str, None]:
    stream = run(writer.job, recording)
    pending = writer.opening(recording)
    try:
        async for index, delta in stream:
            # Held back until the engine has taken the request on, so that a refusal still has its own status.
            if text := pending + writer.events(index, delta, recording):
                yield text
            pending = ""
    finally:
        await stream.aclose()
    yield pending + writer.ending(recording)
