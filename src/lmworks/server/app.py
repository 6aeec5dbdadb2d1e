"""The HTTP application: routes, the order of its layers, and how errors become replies. Knows no engine's inside.

Layers from the outside: headers every response carries, cross-origin rules, the key, admission, the net, the routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lmworks import __version__
from lmworks.core.errors import LMWorksError, require
from lmworks.core.telemetry import subscribed
from lmworks.protocol.errors import InvalidRequestError, error_reply, route_reply
from lmworks.server import page, probes
from lmworks.server.admin import admin_router
from lmworks.server.admission import Admission, Turnstile
from lmworks.server.config import AppConfig
from lmworks.server.gate import ApiKey, CommonHeaders, Failures
from lmworks.server.keys import Keys
from lmworks.server.replies import error_response
from lmworks.server.routes import ROUTERS
from lmworks.server.served_model import ServedModel
from lmworks.server.state import ServerState, state_of
from lmworks.server.tracing import trace_response

CLIENT_CLOSED_REQUEST = 499
"""Logged by convention when nobody is left to read the response."""

router = APIRouter()


def create_app(models: Mapping[str, ServedModel], config: AppConfig, turnstile: Turnstile | None = None) -> FastAPI:
    """Build the application. The engines are the caller's: the application never shuts them down.

    Args:
        models: served name to model.
        config: settings of the application.
        turnstile: who is inside, for a server that drains; None makes one.

    Raises:
        ServerError: the journal cannot be written, or the keys cannot be read.
        MissingExtraError: traces are wanted, and OpenTelemetry is not installed.
    """
    keys = Keys.of(config)
    turnstile = Turnstile(config) if turnstile is None else turnstile
    spans = None
    if config.otlp_endpoint is not None:
        require("opentelemetry.sdk", "otel")
        from lmworks.server.spans import Spans, Tracing  # takes long to import, and few want it

        spans = Spans(config.otlp_endpoint)
    state = ServerState.of(models, config, turnstile, spans)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with subscribed(state.on_event):
            state.batches.resume(state)
            yield
            await state.batches.stop()
        state.close()
        if spans is not None:
            await asyncio.to_thread(spans.close)

    app = FastAPI(title="lmworks", version=__version__, lifespan=lifespan, openapi_url=None)
    app.state.server = state
    for part in (router, *ROUTERS, admin_router(keys), probes.router, page.router):
        app.include_router(part)
    app.add_middleware(Failures)
    if spans is not None:
        app.add_middleware(Tracing, spans=spans)
    app.add_middleware(Admission, turnstile=state.turnstile)
    if keys.users:
        app.add_middleware(ApiKey, keys=keys)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # SDKs send headers of their own
            expose_headers=["X-Request-Id"],
        )
    app.add_middleware(CommonHeaders)
    app.add_exception_handler(LMWorksError, _on_error)
    app.add_exception_handler(HTTPException, _on_route_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    return app


async def _on_error(_: Request, error: Exception) -> Response:
    return error_response(error_reply(error))


async def _on_route_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(route_reply(error.status_code, request.method, request.url.path))
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


@router.get("/v1/traces/{response_id}")
async def get_trace(request: Request, response_id: str) -> dict[str, Any]:
    """Which model gave a response, and what that model was made from."""
    entry = await asyncio.to_thread(state_of(request).journal.find, response_id)
    if entry is None:
        raise InvalidRequestError(
            f"No response {response_id!r} is recorded", "Give the `id` of a response of this server", status=404
        )
    return await asyncio.to_thread(trace_response, entry)
