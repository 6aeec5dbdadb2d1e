"""The lines of a batch: read, answered several at a time, written as OpenAI writes results. Knows no store."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from lmworks.core.errors import EngineOverloadedError, EngineUnavailableError, LMWorksError
from lmworks.protocol.errors import error_reply
from lmworks.protocol.files import BatchLine
from lmworks.server.caller import Caller
from lmworks.server.endpoints import ANSWERS
from lmworks.server.state import ServerState

logger = logging.getLogger(__name__)

CONCURRENT_LINES = 16
RETRIES, PAUSE_SECONDS = 600, 1.0
"""How often, and how long after, a line is tried again that met a full or starting engine."""

Record = Callable[[BatchLine, dict[str, Any], bool], None]
"""Takes a line, its result, and whether it succeeded."""


async def run_lines(
    state: ServerState, lines: Iterable[BatchLine], caller: Caller, record: Record, concurrent: int = CONCURRENT_LINES
) -> None:
    """Answer lines, several at a time, and record each result as it comes; cancelling leaves the rest undone."""
    todo = iter(lines)

    async def work() -> None:
        for line in todo:
            status, body = await _answer(state, line, caller)
            response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
            result = {
                "id": f"batch_req_{uuid.uuid4().hex}",
                "custom_id": line.custom_id,
                "response": response,
                "error": None,
            }
            record(line, result, status == 200)

    workers = [asyncio.create_task(work()) for _ in range(concurrent)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(state: ServerState, line: BatchLine, caller: Caller) -> tuple[int, Any]:
    """Status and body of one line's answer."""
    body = json.dumps(line.body).encode()
    for attempt in range(RETRIES):
        try:
            answered = await ANSWERS[line.url](state, body, caller)
            return 200, answered.model_dump(mode="json")
        except (EngineOverloadedError, EngineUnavailableError) as error:
            if attempt == RETRIES - 1:
                return _failed(error)
            await asyncio.sleep(PAUSE_SECONDS)
        except Exception as error:
            if not isinstance(error, LMWorksError):
                logger.exception("a line of a batch failed")
            return _failed(error)
    raise AssertionError("the last attempt has returned")


def _failed(error: Exception) -> tuple[int, Any]:
    reply = error_reply(error)
    return reply.status, json.loads(reply.to_json())
