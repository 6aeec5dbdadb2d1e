"""`/v1/batches`: create, poll, list, cancel. Knows no line of a batch."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.files import ENDPOINTS, BatchList, BatchObject, BatchRequest
from lmworks.protocol.wire import parse_request
from lmworks.server.caller import caller_of
from lmworks.server.openapi import described
from lmworks.server.replies import json_reply
from lmworks.server.state import read_body, state_of

router = APIRouter()

MAX_PAGE = 100


@router.post("/v1/batches", **described(BatchRequest, BatchObject))
async def create_batch(request: Request) -> Response:
    """Run the lines of an uploaded file.

    Raises:
        InvalidRequestError: the body is impossible, or there is no such file.
    """
    state, owner = state_of(request), caller_of(request).salt
    asked = parse_request(BatchRequest, await read_body(request))
    if asked.endpoint not in ENDPOINTS:
        problem = f"'endpoint' is {asked.endpoint[:80]!r}"
        raise InvalidRequestError(problem, f"Use one of: {', '.join(ENDPOINTS)}", param="endpoint")
    state.files.get(asked.input_file_id, owner)
    return json_reply(state.batches.create(state, asked, owner))


@router.get("/v1/batches", **described(None, BatchList))
async def list_batches(request: Request, after: str | None = None, limit: str = "20") -> Response:
    """The client's batches.

    Raises:
        InvalidRequestError: `limit` is not a number from 1 to 100, or `after` names no batch.
    """
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MAX_PAGE):
        raise InvalidRequestError(f"'limit' must be a number from 1 to {MAX_PAGE}", param="limit")
    batches = state_of(request).batches.list(caller_of(request).salt)
    ids = [batch.id for batch in batches]
    if after is not None and after not in ids:
        raise InvalidRequestError(f"No such batch: {after[:80]!r}", param="after", status=404)
    begin = 0 if after is None else ids.index(after) + 1
    page = batches[begin : begin + int(limit)]
    return json_reply(
        BatchList(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=begin + len(page) < len(batches),
        )
    )


@router.get("/v1/batches/{batch_id}", **described(None, BatchObject))
async def get_batch(request: Request, batch_id: str) -> Response:
    """How far a batch is; errors as in `BatchStore.get`."""
    return json_reply(state_of(request).batches.get(batch_id, caller_of(request).salt))


@router.post("/v1/batches/{batch_id}/cancel", **described(None, BatchObject))
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """Leave the rest of a batch undone; errors as in `BatchStore.get`."""
    return json_reply(state_of(request).batches.cancel(batch_id, caller_of(request).salt))
