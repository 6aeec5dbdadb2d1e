"""Routes that change what is served: adapters, weights, sleep. They need the admin key and what the engine can do.

A route exists where an administrator's key is configured and `engine.operations` has a row for it; the engine does the
work between two steps. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from lmworks.engine.process.operations import OPERATIONS
from lmworks.protocol.admin import (
    AdminRequest,
    AdminResponse,
    LoadLoraRequest,
    UnloadLoraRequest,
    VersionRequest,
    WeightsRequest,
)
from lmworks.protocol.errors import InvalidRequestError, authentication_reply
from lmworks.protocol.wire import parse_request
from lmworks.server.keys import Keys
from lmworks.server.openapi import described
from lmworks.server.replies import error_response, json_reply
from lmworks.server.served_model import ServedModel
from lmworks.server.state import ServerState, read_body, state_of


@dataclass(frozen=True)
class AdminRoute:
    """One row of the table."""

    path: str
    operation: str
    """In `engine.operations`."""
    body: type[AdminRequest] | None
    """None takes the arguments from the query."""
    summary: str
    arguments: Mapping[str, str]
    """Name of the operation's argument to the request's field."""
    method: str = "POST"


ROUTES = (
    AdminRoute("/v1/load_lora_adapter", "load_adapter", LoadLoraRequest, "Load an adapter by name.",
               {"name": "lora_name", "path": "lora_path", "replace": "load_inplace"}),
    AdminRoute("/v1/unload_lora_adapter", "unload_adapter", UnloadLoraRequest, "Forget an adapter.",
               {"name": "lora_name"}),
    AdminRoute("/update_weights", "update_weights", WeightsRequest, "Replace the weights in place.", {"path": "path"}),
    AdminRoute("/weights/load", "load_weights", WeightsRequest, "Load weights beside those that are served.",
               {"path": "path", "version": "version"}),
    AdminRoute("/weights/activate", "activate_weights", VersionRequest, "Serve loaded weights.",
               {"version": "version"}),
    AdminRoute("/weights/rollback", "rollback_weights", VersionRequest, "Serve earlier weights again.", {}),
    AdminRoute("/sleep", "sleep", None, "Free memory: level 1 keeps the weights aside, 2 drops them.",
               {"level": "level"}),
    AdminRoute("/wake_up", "wake_up", None, "Serve again after sleep.", {}),
    AdminRoute("/is_sleeping", "is_sleeping", None, "Whether the engine sleeps.", {}, method="GET"),
)  # fmt: skip


def admin_router(keys: Keys) -> APIRouter:
    """The routes that exist."""
    router = APIRouter()
    known = {name for operations in OPERATIONS.values() for name in operations}
    for route in ROUTES:
        if keys.admins and route.operation in known:
            router.add_api_route(
                route.path,
                _endpoint(route, keys),
                methods=[route.method],
                summary=route.summary,
                **described(route.body, AdminResponse),
            )
    return router


def _endpoint(route: AdminRoute, keys: Keys) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not keys.is_admin(request.headers.get("authorization", "").encode("latin-1")):
            return error_response(authentication_reply())
        state = state_of(request)
        if route.body is None:
            asked: dict[str, Any] = {k: int(v) if v.isdecimal() else v for k, v in request.query_params.items()}
        else:
            asked = parse_request(route.body, await read_body(request)).model_dump()
        model = _chosen(state, asked.get("model"))
        if route.body is LoadLoraRequest:
            _check_name(state, model, asked["lora_name"])
        arguments = {name: asked[field] for name, field in route.arguments.items() if asked.get(field) is not None}
        result = await model.llm.call(route.operation, **arguments)
        return json_reply(AdminResponse(model=model.name, result=result))

    endpoint.__name__ = route.operation
    return endpoint


def _check_name(state: ServerState, model: ServedModel, name: str) -> None:
    """Refuse a name for an adapter that requests already give to something else.

    Raises:
        InvalidRequestError: a model, or another model's adapter, has it.
    """
    for other in state.models.values():
        taken = (other.name, *other.aliases, *(a.name for a in other.adapters if other.llm is not model.llm))
        if name in taken:
            raise InvalidRequestError(
                f"The name {name!r} belongs to the model {other.name!r}", "Choose another", param="lora_name"
            )


def _chosen(state: ServerState, name: str | None) -> ServedModel:
    """The model that is meant.

    Raises:
        ModelNotFoundError: there is none of that name.
        InvalidRequestError: there are several, and none is named.
    """
    if name is not None:
        return state.model(str(name))
    if len(state.models) > 1:
        raise InvalidRequestError(
            "This server has several models", f"Name one as 'model': {', '.join(state.models)}", param="model"
        )
    return next(iter(state.models.values()))
