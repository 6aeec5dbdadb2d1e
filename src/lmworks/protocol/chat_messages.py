"""Turns of a conversation as clients send them, into `core.Message`. Knows no endpoint and no template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import from_json

from lmworks.core.messages import Message, Role
from lmworks.protocol.wire import WireRequest, json_type

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
"""Roles on the wire and the role a template sees."""


def _join_parts(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "\n".join(_part_text(part) for part in value)
    raise ValueError("content must be a string or a non-empty list of text parts")


def _part_text(part: object) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"a content part must be an object, not a {json_type(part)}")
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise ValueError(f"content parts of type {kind!r} are not supported; send parts of type 'text'")
    text = part.get(kind)
    if not isinstance(text, str):
        raise ValueError(f"a content part of type {kind!r} must hold a string named {kind!r}")
    return text


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Content = Annotated[
    str | None,
    BeforeValidator(_join_parts),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}, {"type": "null"}]},
        mode="validation",
    ),
]
"""Text, or a list of text parts, which are joined by line breaks."""


class CalledFunction(WireRequest):
    """The function of an earlier call."""

    name: str
    arguments: str
    """JSON text."""


class EarlierToolCall(WireRequest):
    """A call that the assistant made in an earlier turn."""

    id: str | None = None
    type: str = "function"
    function: CalledFunction

    def to_template(self) -> dict[str, Any]:
        """The mapping a chat template sees: arguments as a value where they are JSON, as `transformers` has them."""
        try:
            arguments: Any = from_json(self.function.arguments)
        except ValueError:
            arguments = self.function.arguments
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": self.type, "function": function} | ({} if self.id is None else {"id": self.id})


class ChatMessage(WireRequest):
    """One turn."""

    role: Annotated[str, WithJsonSchema({"type": "string", "enum": list(ROLES)})]
    content: Content = None
    name: str | None = None
    tool_calls: list[EarlierToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """What the assistant thought, for templates that show it again."""
    reasoning: str | None = None
    """The newer name of `reasoning_content`."""

    @field_validator("role")
    @classmethod
    def _known_role(cls, value: str) -> str:
        if value not in ROLES:
            raise ValueError(f"the role must be one of {', '.join(ROLES)}")
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a {self.role} message needs content")
        return self

    def to_message(self) -> Message:
        """The value that templates and engines share."""
        return Message(
            role=ROLES[self.role],
            content=self.content or "",
            name=self.name,
            tool_calls=[call.to_template() for call in self.tool_calls] if self.tool_calls else None,
            tool_call_id=self.tool_call_id,
            reasoning_content=self.reasoning or self.reasoning_content,
        )


Messages = Annotated[list[ChatMessage], Field(min_length=1)]
