"""The turns of a conversation as JSON holds them, into messages and back, nothing dropped. Knows no row type.

Read are OpenAI's chat turns and the names that others give their parts (`reasoning`, `thinking`, the role
`developer`). Arguments of a tool call are kept as the object that they are, not as the text some write it as.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from lmworks.core.config import explain, nearest
from lmworks.core.messages import Message
from lmworks.data.rows.values import RowFault

_ALIASES = {"reasoning": "reasoning_content", "thinking": "reasoning_content"}
_WEIGHT = "weight"
"""OpenAI's: 0 keeps a turn from being learnt."""


def read_turns(value: object, field: str) -> tuple[Message, ...]:
    """Messages of a list of turns.

    Args:
        value: as JSON gave it.
        field: where it stands in the row, for messages.

    Raises:
        RowFault: it is no list of turns, or a turn has what messages cannot hold.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowFault("malformed", f"{field!r} is a {type(value).__name__}, not a list of turns")
    if not value:
        raise RowFault("no turns", f"{field!r}: the conversation has no turns")
    return tuple(_message(number, turn) for number, turn in enumerate(value))


def write_turns(turns: Sequence[Message], *, arguments_as_text: bool = False) -> list[dict[str, Any]]:
    """The turns as JSON holds them.

    Args:
        turns: messages.
        arguments_as_text: write the arguments of tool calls as OpenAI does, as JSON in a string.
    """
    written = [turn.to_template() for turn in turns]
    for turn in written if arguments_as_text else ():
        if "tool_calls" in turn:
            turn["tool_calls"] = [_with_arguments(call, _as_text) for call in turn["tool_calls"]]
    return written


def check_order(messages: Sequence[Message]) -> None:
    """A conversation opens with the user (after an optional system turn) and alternates; results follow calls.

    Raises:
        RowFault: naming the first turn that is out of order.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise RowFault("no turns", "the conversation has no turns")
    if turns[0].role != "user":
        raise RowFault("role order", f"the first turn is {turns[0].role!r}, it must be 'user'")
    before = {"user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"assistant", "tool"}, "system": set[str]()}
    for number, (previous, turn) in enumerate(pairwise(turns), 1):
        if previous.role not in before[turn.role]:
            raise RowFault("role order", f"turn {number} ({turn.role!r}) cannot follow {previous.role!r}")


def _message(number: int, turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise RowFault("malformed", f"message {number} is a {type(turn).__name__}, not an object")
    values: dict[str, Any] = {}
    for key, value in turn.items():
        name = _ALIASES.get(key, key)
        if value is None or (key == _WEIGHT and value == 1):
            continue
        if key == _WEIGHT:
            raise RowFault(
                "turn weight",
                f"message {number} has weight {value!r}; only 1 is known, so end the conversation before it",
            )
        if name not in Message.model_fields:
            raise RowFault(
                "unknown field", f"message {number} has {key!r}{nearest(str(key), list(Message.model_fields))}"
            )
        if name in values:
            raise RowFault("malformed", f"message {number} gives {name!r} twice")
        values[name] = value
    if values.get("role") == "developer":
        values["role"] = "system"
    if isinstance(parts := values.get("content"), (list, tuple)):
        values["content"] = _joined(number, parts)
    calls = values.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        values["tool_calls"] = [_with_arguments(call, _as_value) for call in calls]
        if not calls:
            del values["tool_calls"]
        elif "content" not in values:
            values["content"] = ""  # a turn that only calls tools has null content in the chat layout
    try:
        return Message.model_validate(values)
    except ValidationError as error:
        raise RowFault("malformed", f"message {number}: {explain(Message, error)}") from None


def _joined(number: int, parts: Sequence[object]) -> str:
    """The text of content that is given in parts."""
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RowFault("not text", f"message {number} has content that is not text; only text can be tuned on")
    return "".join(map(str, texts))


def _with_arguments(call: Any, change: Any) -> Any:
    """A tool call with its arguments changed; what is not of that shape is left to the validation of messages."""
    if not isinstance(call, Mapping):
        return call
    kept = {key: value for key, value in call.items() if value is not None}
    inner = kept.get("function")
    if isinstance(inner, Mapping) and "arguments" in inner:
        kept["function"] = {**inner, "arguments": change(inner["arguments"])}
    return kept


def _as_value(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: object) -> object:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
