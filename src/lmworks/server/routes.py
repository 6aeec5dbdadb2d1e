"""All routes of the protocol, in one place. Knows no application."""

from __future__ import annotations

from lmworks.server import chat, completions, embeddings, models, openapi, rerank, tokenize

ROUTERS = tuple(part.router for part in (chat, completions, embeddings, rerank, tokenize, models, openapi))
