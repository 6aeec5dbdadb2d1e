"""OpenAI's error body, and which HTTP status each error of `core.errors` deserves.

Messages of our own errors are written for users and go out as they are; anything else is answered with a
fixed sentence, so that no path, trace or internal value leaves the process. Knows no web framework.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from lmworks.core.errors import (
    DeadlineExceededError,
    EngineOverloadedError,
    EngineUnavailableError,
    LMWorksError,
    ModelNotFoundError,
    RateLimitError,
    RequestError,
    RequestTooLongError,
)

RETRY_AFTER_SECONDS = 1
"""How long an overloaded or draining server asks clients to wait."""


class InvalidRequestError(RequestError):
    """A request breaks the protocol.

    Args:
        problem: what is wrong, naming the value and the rule.
        remedy: what the client can send instead.
        param: the request field at fault, such as `messages[0].content`.
        code: OpenAI's machine-readable code, where there is one.
        status: HTTP status.
    """

    def __init__(
        self, problem: str, remedy: str = "", *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(problem, remedy)
        self.param, self.code, self.status = param, code, status


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


@dataclass(frozen=True)
class ErrorReply:
    """One HTTP error: status, OpenAI-shaped body, extra headers."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The body `{"error": {"message", "type", "param", "code"}}`."""
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump_json()


def error_reply(error: BaseException) -> ErrorReply:
    """What a client is told about `error`."""
    message = str(error)
    match error:
        case InvalidRequestError():
            return ErrorReply(error.status, message, "invalid_request_error", error.param, error.code)
        case RequestTooLongError():
            return ErrorReply(400, message, "invalid_request_error", None, "context_length_exceeded")
        case ModelNotFoundError():
            return ErrorReply(404, message, "invalid_request_error", "model", "model_not_found")
        case RequestError():
            return ErrorReply(400, message, "invalid_request_error")
        case DeadlineExceededError():
            return ErrorReply(408, message, "invalid_request_error", None, "request_timeout")
        case EngineOverloadedError():
            headers = {"Retry-After": str(error.retry_after_seconds)}
            return ErrorReply(503, message, "server_error", None, "engine_overloaded", headers)
        case EngineUnavailableError():
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            return ErrorReply(503, message, "server_error", None, "engine_unavailable", headers)
        case RateLimitError():
            headers = {"Retry-After": str(error.retry_after_seconds)}
            return ErrorReply(429, message, "rate_limit_error", None, "rate_limit_exceeded", headers)
        case LMWorksError():
            return ErrorReply(500, message, "server_error")
        case _:
            return ErrorReply(500, "The server failed while processing the request.", "server_error")


def authentication_reply() -> ErrorReply:
    """The answer to a missing or wrong key."""
    message = "Missing or incorrect API key. Send it in the header `Authorization: Bearer KEY`."
    headers = {"WWW-Authenticate": "Bearer"}
    return ErrorReply(401, message, "invalid_request_error", None, "invalid_api_key", headers)


def route_reply(status: int, method: str, path: str) -> ErrorReply:
    """The answer to a path that does not exist (404) or a method it does not take (405)."""
    message = f"Not allowed to {method} {path}." if status == 405 else f"Invalid URL ({method} {path})."
    return ErrorReply(status, message, "invalid_request_error")
