"""The rerank and score routes: how well texts go with a query, or with each other. Knows no pooling and no head."""

from __future__ import annotations

import asyncio
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
from lmworks.server.served_model import ServedModel
from lmworks.server.state import ServerState
from lmworks.server.vectors import score_pairs

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
    """Read a body and answer it; errors as in `vectors.score_pairs`."""
    asked = parse_request(RerankRequest, body)
    model = state.model(asked.model)
    texts = list(asked.documents)
    if asked.max_tokens_per_doc is not None:
        texts = await asyncio.to_thread(_cut, model, texts, asked.max_tokens_per_doc)
    scores = await score_pairs(model, [asked.query], texts, param="documents")
    results = [
        RerankResult(
            index=index,
            relevance_score=score,
            document=None if asked.return_documents is False else RerankedText(text=text),
        )
        for index, (score, text) in enumerate(zip(scores.values, asked.documents, strict=True))
    ]
    results.sort(key=lambda result: -result.relevance_score)
    return RerankResponse(
        id=f"rerank-{uuid.uuid4().hex}",
        model=model.name,
        usage=EmbeddingUsage(prompt_tokens=scores.num_tokens, total_tokens=scores.num_tokens),
        results=results[: asked.top_n],
    )


async def create_score(state: ServerState, body: bytes, _: Caller) -> ScoreResponse:
    """Read a body and answer it.

    Raises:
        InvalidRequestError: the numbers of texts do not fit; and as in `vectors.score_pairs`.
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
    scores = await score_pairs(model, first, second, param="text_2")
    return ScoreResponse(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model.name,
        data=[ScoreItem(index=index, score=value) for index, value in enumerate(scores.values)],
        usage=EmbeddingUsage(prompt_tokens=scores.num_tokens, total_tokens=scores.num_tokens),
    )


def _cut(model: ServedModel, texts: list[str], limit: int) -> list[str]:
    """Texts without what comes after their first tokens."""
    tokenizer = model.llm.tokenizer
    encoded = zip(texts, tokenizer.encode_batch(texts), strict=True)
    return [text if len(ids) <= limit else tokenizer.decode(ids[:limit]) for text, ids in encoded]
