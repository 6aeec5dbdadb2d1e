"""Bases of the wire's schemas and the one door a request body comes through.

Requests are strict (a string is not a number), responses drop the fields OpenAI leaves out when they are
empty. A field of OpenAI's that would change the answer and that we do not implement is refused by name; one
that would not is ignored. Knows no endpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import from_json

from lmworks.protocol.errors import InvalidRequestError

R = TypeVar("R", bound="WireRequest")

PLAIN_NAME = re.compile(r"[\w$-]{1,40}")
"""A name that a path can hold as it is."""


class WireRequest(BaseModel):
    """A request body; fields it does not know are ignored unless they are in `UNSUPPORTED`."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that would change the answer, with the values that ask for what happens anyway."""


class WireResponse(BaseModel):
    """A response body; fields named in `OMIT_IF_NONE` are absent rather than null."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _omit(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if v is not None or k not in self.OMIT_IF_NONE}


def parse_request(schema: type[R], body: bytes) -> R:
    """Read a JSON body.

    Raises:
        InvalidRequestError: the body is not UTF-8 JSON, not an object, or breaks the schema; `param` names the field.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}", "Send UTF-8 encoded JSON") from None
    if not isinstance(values, dict):
        raise InvalidRequestError(f"The request body is a JSON {json_type(values)}", "Send a JSON object")
    # Languages of one number type write 2 as 2.0, which JSON Schema calls an integer too.
    values = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    for name, harmless in schema.UNSUPPORTED.items():
        if name in values and values[name] is not None and values[name] not in harmless:
            raise InvalidRequestError(
                f"{name!r} is not supported by this server", "Leave it out", param=name, code="unsupported_parameter"
            )
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError, at: tuple[int | str, ...] = ()) -> InvalidRequestError:
    """The first problem of a failed validation, named the way OpenAI names fields.

    Args:
        error: of a value in a request.
        at: where the value stands in the request.
    """
    problem = error.errors()[0]
    param = field_path((*at, *problem["loc"])) or None
    if problem["type"] == "missing":
        return InvalidRequestError(
            f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter"
        )
    message = problem["msg"].removeprefix("Value error, ")
    shown = repr(problem["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    where = "" if param is None else f" for '{param}'"
    return InvalidRequestError(f"Invalid value{where}: {message}, got {shown}", param=param, code="invalid_value")


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int) or not PLAIN_NAME.fullmatch(part):
            path += f"[{part}]" if isinstance(part, int) else f"[{json.dumps(part[:40])}]"
        else:
            path += f".{part}" if path else part
    return path


def json_type(value: object) -> str:
    """The JSON name of a decoded value's type."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
