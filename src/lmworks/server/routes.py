"""All routes of the protocol, in one place. Knows no application."""

from __future__ import annotations

from lmworks.server import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    models,
    openapi,
    rerank,
    responses,
    tokens,
)

ROUTERS = tuple(
    part.router for part in (chat, completions, responses, embeddings, rerank, tokens, models, files, batches, openapi)
)
