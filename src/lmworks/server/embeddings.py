"""`POST /v1/embeddings`: texts or token ids in, vectors out. Knows no pooling."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from lmworks.protocol.embeddings import (
    EmbeddingRequest,
    EmbeddingResponse,
    EmbeddingUsage,
    embedding_items,
    shortened,
)
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer_with
from lmworks.server.caller import Caller
from lmworks.server.openapi import described
from lmworks.server.state import ServerState
from lmworks.server.vectors import embed

router = APIRouter()


@router.post("/v1/embeddings", **described(EmbeddingRequest, EmbeddingResponse))
async def embeddings(request: Request) -> Response:
    """Turn texts into vectors."""
    return await answer_with(request, create)


async def create(state: ServerState, body: bytes, _: Caller) -> EmbeddingResponse:
    """Read a body and answer it.

    Raises:
        InvalidRequestError: the body or a text is impossible, or the model does not embed.
    """
    asked = parse_request(EmbeddingRequest, body)
    model = state.model(asked.model)
    vectors = await embed(model, asked.input, param="input", cut=asked.truncate_prompt_tokens)
    size = vectors.rows.shape[1]
    if (asked.dimensions or 0) > size:
        raise InvalidRequestError(
            f"'dimensions' is {asked.dimensions}, and the model's vectors have {size}", "Ask for less",
            param="dimensions",
        )  # fmt: skip
    rows = shortened(vectors.rows, asked.dimensions)
    return EmbeddingResponse(
        data=await asyncio.to_thread(embedding_items, rows, asked.encoding_format),
        model=model.name,
        usage=EmbeddingUsage(prompt_tokens=vectors.num_tokens, total_tokens=vectors.num_tokens),
    )
