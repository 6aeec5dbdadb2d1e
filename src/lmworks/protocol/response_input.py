"""Items of `/v1/responses`, as clients send them and as earlier responses hold them, into a conversation.

Knows no endpoint and no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ValidationError, WithJsonSchema
from pydantic_core import from_json

from lmworks.core.messages import Message
from lmworks.protocol.chat_messages import ROLES
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.wire import WireRequest, invalid, json_type

Item = dict[str, Any]
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and the field that holds it."""


def _content_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"content must be a string or a list of parts, not a {json_type(value)}")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else json_type(part)
        if kind not in TEXT_PARTS:
            raise ValueError(f"content parts of type {kind!r} are not supported; send parts of type 'input_text'")
        text = part.get(TEXT_PARTS[kind])
        if not isinstance(text, str):
            raise ValueError(f"a content part of type {kind!r} must hold a string named {TEXT_PARTS[kind]!r}")
        texts.append(text)
    return "\n".join(texts)


Text = Annotated[
    Any,
    AfterValidator(_content_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}, mode="validation"),
]
"""A string, or a list of text parts; a string once read."""


class MessageItem(WireRequest):
    """A turn in words."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text


class FunctionCallItem(WireRequest):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(WireRequest):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Text


class ReasoningItem(WireRequest):
    """What the model thought."""

    type: Literal["reasoning"]
    content: list[Item] | None = None
    summary: list[Item] | None = None

    @property
    def text(self) -> str:
        """The thoughts, or what is left of them."""
        parts = self.content or self.summary or []
        return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


InputItem = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
FORMS: dict[str, type[InputItem]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionOutputItem,
    "reasoning": ReasoningItem,
}
ITEM_SCHEMA = {"anyOf": [form.model_json_schema() for form in FORMS.values()]}
"""Of one item, for the OpenAPI document."""


def read_items(items: Sequence[Item]) -> list[InputItem]:
    """Check items.

    Raises:
        InvalidRequestError: one is of a kind that is not supported, or breaks its schema.
    """
    read = []
    for index, item in enumerate(items):
        kind = item.get("type") or "message"
        form = FORMS.get(kind) if isinstance(kind, str) else None
        if form is None:
            raise InvalidRequestError(
                f"Items of type {str(kind)[:40]!r} are not supported", f"Send one of: {', '.join(FORMS)}",
                param=f"input[{index}].type",
            )  # fmt: skip
        try:
            read.append(form.model_validate(item))
        except ValidationError as error:
            raise invalid(error, at=("input", index)) from None
    return read


def to_messages(items: Sequence[InputItem], instructions: str | None) -> list[Message]:
    """Items as turns: thoughts, words and calls that follow each other are one turn of the assistant."""
    turns: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                turn = _assistant_turn(turns)
                turn["content"] = "\n".join(filter(None, (turn["content"], item.content)))
            case MessageItem():
                turns.append({"role": ROLES[item.role], "content": item.content})
            case ReasoningItem():
                turn = _assistant_turn(turns)
                turn["reasoning_content"] = "\n".join(filter(None, (turn.get("reasoning_content"), item.text))) or None
            case FunctionCallItem():
                function = {"name": item.name, "arguments": _value(item.arguments)}
                call = {"id": item.call_id, "type": "function", "function": function}
                _assistant_turn(turns).setdefault("tool_calls", []).append(call)
            case FunctionOutputItem():
                turns.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
    return [Message(**turn) for turn in turns]


def _assistant_turn(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The turn of the assistant that goes on, or a new one."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _value(arguments: str) -> Any:
    """Arguments as templates want them: a value where they are JSON."""
    try:
        return from_json(arguments)
    except ValueError:
        return arguments
