"""The rerank and score routes: how well texts go with a query, by the cosine of their vectors. Knows no pooling."""

from __future__ import annotations

import time
import uuid

from fastapi import APIRouter, Request, Response

from lmworks.protocol.embeddings import EmbeddingUsage
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.rerank import (
    RerankedText,
    RerankRequest,
    RerankResponse,
    RerankResult,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer_with
from lmworks.server.caller import Caller
from lmworks.server.openapi import described
from lmworks.server.state import ServerState
from lmworks.server.vectors import embed

router = APIRouter()


@router.post("/v1/rerank", **described(RerankRequest, RerankResponse))
@router.post("/v2/rerank", **described(RerankRequest, RerankResponse))
@router.post("/rerank", **described(RerankRequest, RerankResponse))
async def rerank(request: Request) -> Response:
    """Order documents by how well they answer a query."""
    return await answer_with(request, create_rerank)


@router.post("/v1/score", **described(ScoreRequest, ScoreResponse))
@router.post("/score", **described(ScoreRequest, ScoreResponse))
async def score(request: Request) -> Response:
    """Say how well pairs of texts go together."""
    return await answer_with(request, create_score)


async def create_rerank(state: ServerState, body: bytes, _: Caller) -> RerankResponse:
    """Read a body and answer it; errors as in `vectors.embed`."""
    asked = parse_request(RerankRequest, body)
    model = state.model(asked.model)
    cuts = [-1, *[asked.max_tokens_per_doc or -1] * len(asked.documents)]
    vectors = await embed(model, [asked.query, *asked.documents], param="documents", limits=cuts)
    scores = (vectors.rows[1:] @ vectors.rows[0]).tolist()
    results = [
        RerankResult(
            index=index,
            relevance_score=score,
            document=None if asked.return_documents is False else RerankedText(text=text),
        )
        for index, (score, text) in enumerate(zip(scores, asked.documents, strict=True))
    ]
    results.sort(key=lambda result: -result.relevance_score)
    return RerankResponse(
        id=f"rerank-{uuid.uuid4().hex}",
        model=model.name,
        usage=EmbeddingUsage(prompt_tokens=vectors.num_tokens, total_tokens=vectors.num_tokens),
        results=results[: asked.top_n],
    )


async def create_score(state: ServerState, body: bytes, _: Caller) -> ScoreResponse:
    """Read a body and answer it.

    Raises:
        InvalidRequestError: the numbers of texts do not fit; and as in `vectors.embed`.
    """
    asked = parse_request(ScoreRequest, body)
    model = state.model(asked.model)
    first, second = asked.text_1, asked.text_2
    if len(first) not in (1, len(second)):
        raise InvalidRequestError(
            f"{len(first)} texts in 'text_1' cannot be paired with {len(second)} in 'text_2'",
            "Send one for all, or one for each",
            param="text_1",
        )
    vectors = await embed(model, [*first, *second], param="text_1")
    left, right = vectors.rows[: len(first)], vectors.rows[len(first) :]
    scores = (left * right).sum(1).tolist()
    return ScoreResponse(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model.name,
        data=[ScoreItem(index=index, score=value) for index, value in enumerate(scores)],
        usage=EmbeddingUsage(prompt_tokens=vectors.num_tokens, total_tokens=vectors.num_tokens),
    )
