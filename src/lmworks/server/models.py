"""`GET /v1/models`: what this server answers for. Knows no engine's inside."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response

from lmworks.protocol.models import Capability, ModelCard, ModelList
from lmworks.server.openapi import described
from lmworks.server.replies import json_reply
from lmworks.server.served_model import ServedModel
from lmworks.server.state import state_of

router = APIRouter()


@router.get("/v1/models/", include_in_schema=False)
@router.get("/v1/models", **described(None, ModelList))
async def list_models(request: Request) -> Response:
    """Every served model, its other names after it."""
    return json_reply(ModelList(data=[card for model in state_of(request).models.values() for card in cards_of(model)]))


@router.get("/v1/models/{name:path}", **described(None, ModelCard))
async def get_model(request: Request, name: str) -> Response:
    """One served model.

    Raises:
        ModelNotFoundError: there is none of that name.
    """
    model = state_of(request).model(name)
    return json_reply(next(card for card in cards_of(model) if card.id == name))


def cards_of(model: ServedModel) -> Iterator[ModelCard]:
    """A model under each of its names, and its adapters."""
    if model.llm.info.kind == "embed":
        capabilities: list[Capability] = ["embedding"]
    else:
        capabilities = ["completion", "chat"] if model.can_chat else ["completion"]
    for name in (model.name, *model.aliases):
        yield ModelCard(
            id=name,
            created=model.created,
            root=model.name,
            parent=model.parent,
            max_model_len=model.llm.max_model_len,
            capabilities=capabilities,
            weight_version=model.llm.stats().weight_version or None,
        )
    if model.adapter is None:
        for adapter in model.adapters:
            yield from cards_of(adapter)
