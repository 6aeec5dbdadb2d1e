"""`/v1/models`: which models a server answers for. Knows no weights."""

from __future__ import annotations

from typing import Literal

from lmworks.protocol.wire import WireResponse


class ModelCard(WireResponse):
    """One served model: OpenAI's four fields, vLLM's `max_model_len`, and what may be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lmworks"
    max_model_len: int
    """Prompt and answer together, in tokens."""
    capabilities: list[Literal["completion", "chat"]]
    """`chat` is missing where the model has no chat template."""


class ModelList(WireResponse):
    """The body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
