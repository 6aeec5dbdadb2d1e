"""`/v1/rerank` in Cohere's and Jina's shape, and `/v1/score` in vLLM's. Knows no model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, WithJsonSchema

from lmworks.protocol.embeddings import EmbeddingUsage
from lmworks.protocol.wire import WireRequest, WireResponse

MAX_DOCUMENTS = 2048
"""Documents of one request."""


def _document_text(value: object) -> object:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"]
    if isinstance(value, str):
        return value
    raise ValueError("a document is a string, or an object with a string named 'text'")


_WITH_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
Document = Annotated[
    str,
    BeforeValidator(_document_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, _WITH_TEXT]}, mode="validation"),
]


def _text_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_DOCUMENTS}
Texts = Annotated[
    list[str],
    Field(min_length=1, max_length=MAX_DOCUMENTS),
    BeforeValidator(_text_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS]}, mode="validation"),
]
"""One text or several; a list once read."""


class RerankRequest(WireRequest):
    """The body of the rerank routes."""

    model: str | None = None
    query: str
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    """Return so many; None returns all."""
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    """Read so many of a document's first tokens."""


class RerankedText(WireResponse):
    """A document."""

    text: str


class RerankResult(WireResponse):
    """One document's place in the order."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"document"})

    index: int
    """Its place in the request."""
    relevance_score: float
    document: RerankedText | None = None


class RerankResponse(WireResponse):
    """Documents, the most relevant first."""

    id: str
    model: str
    usage: EmbeddingUsage
    results: list[RerankResult]


class ScoreRequest(WireRequest):
    """The body of the score routes: one text against several, or as many pairs as texts."""

    model: str | None = None
    text_1: Annotated[Texts, Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))]
    text_2: Annotated[Texts, Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))]


class ScoreItem(WireResponse):
    """One pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(WireResponse):
    """The body of the response."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreItem]
    usage: EmbeddingUsage
