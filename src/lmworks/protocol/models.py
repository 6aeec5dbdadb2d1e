"""`/v1/models`: which models a server answers for. Knows no weights."""

from __future__ import annotations

from typing import Literal

from lmworks.protocol.wire import WireResponse

Capability = Literal["completion", "chat", "embedding"]


class ModelCard(WireResponse):
    """One served model: OpenAI's four fields, vLLM's next three, and what may be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lmworks"
    root: str | None = None
    """What is behind another name: the model of an alias, the adapter's own name."""
    parent: str | None = None
    """The model that an adapter belongs to."""
    max_model_len: int
    """Prompt and answer together, in tokens."""
    capabilities: list[Capability]
    """`chat` is missing where the model has no chat template."""
    weight_version: str | None = None
    """Of the weights that serve, where they can be exchanged."""


class ModelList(WireResponse):
    """The body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
