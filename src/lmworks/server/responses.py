"""`/v1/responses`: items in, items out, going on from stored responses. Knows no sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.response_input import FunctionOutputItem, InputItem, to_messages
from lmworks.protocol.response_output import DeletedResponse, ItemList, ResponseObject
from lmworks.protocol.responses import ResponsesRequest
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer
from lmworks.server.caller import Caller, caller_of
from lmworks.server.conversation import Conversation, encode_conversation
from lmworks.server.generation import new_job
from lmworks.server.openapi import described
from lmworks.server.replies import json_reply
from lmworks.server.response_store import StoredResponse
from lmworks.server.response_writer import ResponseWriter
from lmworks.server.served_model import ServedModel
from lmworks.server.state import ServerState, state_of

router = APIRouter()


@router.post("/v1/responses", **described(ResponsesRequest, ResponseObject, streams=True))
async def create_response(request: Request) -> Response:
    """Answer the input's items."""
    return await answer(request, prepare)


@router.get("/v1/responses/{response_id}", **described(None, ResponseObject))
async def get_response(request: Request, response_id: str) -> Response:
    """A stored response; errors as in `stored_response`."""
    stored = stored_response(state_of(request), response_id, caller_of(request))
    return Response(stored.body, media_type="application/json")


@router.delete("/v1/responses/{response_id}", **described(None, DeletedResponse))
async def delete_response(request: Request, response_id: str) -> Response:
    """Forget a stored response; errors as in `stored_response`."""
    state, caller = state_of(request), caller_of(request)
    stored_response(state, response_id, caller)
    state.responses.delete(response_id, caller.salt)
    return json_reply(DeletedResponse(id=response_id))


@router.get("/v1/responses/{response_id}/input_items", **described(None, ItemList))
async def list_input_items(request: Request, response_id: str) -> Response:
    """What a stored response was asked; errors as in `stored_response`."""
    stored = stored_response(state_of(request), response_id, caller_of(request))
    items = []
    for number, item in enumerate(stored.input):
        content = item.get("content")
        parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
        named = {"type": "message", "id": f"item_{response_id}_{number}", "status": "completed", **item}
        items.append(named if content is None else {**named, "content": parts})
    first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
    return json_reply(ItemList(data=items, first_id=first, last_id=last))


def stored_response(state: ServerState, response_id: str, caller: Caller) -> StoredResponse:
    """A client's own response.

    Raises:
        InvalidRequestError: there is none (404).
    """
    stored = state.responses.get(response_id, caller.salt)
    if stored is None:
        raise InvalidRequestError(f"Response with id {response_id[:80]!r} not found", status=404)
    return stored


async def prepare(state: ServerState, body: bytes, caller: Caller) -> ResponseWriter:
    """Read a body and make ready to answer it.

    Raises:
        InvalidRequestError: the body or the conversation is impossible, or the previous response is not there.
        ModelNotFoundError: there is no such model.
    """
    asked = parse_request(ResponsesRequest, body)
    model, params = state.model(asked.model), asked.sampling_params()
    history: Sequence[dict[str, object]] = ()
    if asked.previous_response_id is not None:
        previous = state.responses.get(asked.previous_response_id, caller.salt)
        if previous is None:
            raise InvalidRequestError(
                f"Previous response with id {asked.previous_response_id[:80]!r} not found",
                "Send the whole conversation as input",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        history = previous.conversation
    conversation = await asyncio.to_thread(encode, model, asked, history)
    params = conversation.constrained(
        params, asked.structured(), asked.tool_mode, parallel=asked.parallel_tool_calls is not False
    )
    job = new_job("resp_", model, [conversation.prompt], params, asked, param="input", caller=caller)
    return ResponseWriter(job, asked, conversation, history, state.responses, caller.salt)


def encode(model: ServedModel, asked: ResponsesRequest, history: Sequence[dict[str, object]]) -> Conversation:
    """All items as a prompt; with `truncation: auto` as many of the latest as fit.

    Raises:
        InvalidRequestError: an item is impossible, or the chat template refuses the conversation.
    """
    items = asked.items(history)
    if not items:
        raise InvalidRequestError("'input' is empty", "Send at least one item", param="input")

    def written(begin: int) -> Conversation:
        kept: list[InputItem] = items[begin:]
        messages = to_messages(kept, asked.instructions)
        return encode_conversation(model, messages, asked.offered_tools(), asked.template_inputs(), param="input")

    whole = written(0)
    room = model.llm.max_model_len - (asked.max_output_tokens or 1)
    if asked.truncation != "auto" or len(whole.prompt) <= room:
        return whole
    low, high = 1, len(items) - 1  # what fits is some end of the conversation: halve until the longest is found
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(written(middle).prompt) <= room else (middle + 1, high)
    while isinstance(items[low], FunctionOutputItem) and low < len(items) - 1:
        low += 1  # its call is gone
    return written(low)
