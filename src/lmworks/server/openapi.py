"""The OpenAPI document: FastAPI's, with the bodies that our routes read themselves.

Routes check bodies on their own, so that every refusal has OpenAI's shape; `described` tells FastAPI what they read and
give. Knows no endpoint.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lmworks.protocol.errors import ErrorBody

COMPONENTS = "#/components/schemas/{model}"

router = APIRouter()
_bodies: dict[str, type[BaseModel]] = {}
"""Request schemas by name."""

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused; the body says why."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer now."},
}


def described(
    body: type[BaseModel] | None, reply: type[BaseModel] | None, *, streams: bool = False, media_type: str = ""
) -> dict[str, Any]:
    """Arguments of a route's decorator.

    Args:
        body: what the route reads as JSON; None where it reads no body.
        reply: what it gives as JSON; None where that has another form.
        streams: it may give server-sent events instead.
        media_type: of a body that is not JSON.
    """
    content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
    if media_type:
        content[media_type] = {"schema": {"type": "string"}}
    success: dict[str, Any] = {"description": "The answer."} | ({"content": content} if content else {})
    arguments: dict[str, Any] = {
        "response_model": None,
        "responses": {200: success | ({"model": reply} if reply is not None else {}), **ERRORS},
    }
    if body is not None:
        _bodies[body.__name__] = body
        schema = {"$ref": COMPONENTS.format(model=body.__name__)}
        arguments["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        }
    return arguments


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """The document."""
    app = request.app
    assert isinstance(app, FastAPI)
    return document(app)


def document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, completed by the schemas of bodies."""
    whole = app.openapi()
    _, definitions = models_json_schema([(body, "validation") for body in _bodies.values()], ref_template=COMPONENTS)
    schemas: dict[str, Any] = whole.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions.get("$defs", {}).items():
        schemas.setdefault(name, schema)
    refused = {"$ref": COMPONENTS.format(model=ErrorBody.__name__)}
    for operations in whole["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own form of refusal, which nobody meets here
            for status, described_as in ERRORS.items():
                content = {"application/json": {"schema": refused}}
                answer = {"description": described_as["description"], "content": content}
                operation["responses"].setdefault(status, answer)
    return whole
