"""`/v1/embeddings`: request and response. Knows no model."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.protocol.completions import Prompts
from lmworks.protocol.wire import WireRequest, WireResponse

FloatArray = NDArray[np.float32]


class EmbeddingRequest(WireRequest):
    """The body of `POST /v1/embeddings`."""

    model: str | None = None
    input: Prompts
    """One text, one list of token ids, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    """Keep so many of each vector's first dimensions, for models trained to bear it (arXiv:2205.13147)."""
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1)] = None
    """Keep so many of a text's first tokens; -1 keeps what the model takes. Without it a longer text is refused."""


class EmbeddingItem(WireResponse):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or little-endian float32 in base64."""


class EmbeddingUsage(WireResponse):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(WireResponse):
    """The body of the response."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


def embedding_items(vectors: FloatArray, encoding_format: str | None) -> list[EmbeddingItem]:
    """Vectors [N, E] in the form asked for."""
    if encoding_format == "base64":
        written: list[list[float] | str] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        written = vectors.tolist()
    return [EmbeddingItem(index=index, embedding=value) for index, value in enumerate(written)]


def shortened(vectors: FloatArray, dimensions: int | None) -> FloatArray:
    """The first dimensions of vectors [N, E], at unit length again."""
    if dimensions is None:
        return vectors
    kept = vectors[:, :dimensions]
    return kept / np.linalg.norm(kept, axis=1, keepdims=True).clip(1e-12)
