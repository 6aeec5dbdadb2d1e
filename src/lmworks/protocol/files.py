"""`/v1/files` and `/v1/batches`: what is stored, what is run from it, and the lines in between. Knows no disk."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.wire import WireRequest, WireResponse, parse_request

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""What the lines of a batch may ask."""
MAX_LINES = 50_000
"""OpenAI's bound of a batch."""

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Endpoint = Annotated[str, WithJsonSchema({"type": "string", "enum": list(ENDPOINTS)})]


class FileObject(WireResponse):
    """A stored file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FileList(WireResponse):
    """A client's files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool = False


class DeletedFile(WireResponse):
    """What `DELETE /v1/files/{id}` says."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchRequest(WireRequest):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: str | None = None
    """Accepted: a batch runs as soon as there is room."""
    metadata: dict[str, str] | None = None


class BatchError(WireResponse):
    """What is wrong with a line of the input."""

    code: str
    line: int | None = None
    message: str
    param: str | None = None


class BatchErrors(WireResponse):
    """Why a batch was not begun."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchCounts(WireResponse):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(WireResponse):
    """A batch, in whatever state."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"model"})

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts = BatchCounts()
    metadata: dict[str, str] | None = None


class BatchList(WireResponse):
    """A client's batches, the latest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchLine(WireRequest):
    """One line of the input."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


def read_batch_line(line: bytes, endpoint: str | None) -> BatchLine:
    """Check one line.

    Args:
        line: JSON.
        endpoint: what all lines must ask; None permits any.

    Raises:
        InvalidRequestError: the line is no JSON object of this form.
    """
    read = parse_request(BatchLine, line)
    if read.url not in ENDPOINTS or (endpoint is not None and read.url != endpoint):
        wanted = endpoint or f"one of {', '.join(ENDPOINTS)}"
        raise InvalidRequestError(
            f"'url' is {read.url[:80]!r} and must be {wanted}", param="url", code="mismatched_url"
        )
    if read.body.get("stream"):
        raise InvalidRequestError("A line of a batch cannot be streamed", "Leave 'stream' out", param="body.stream")
    return read
