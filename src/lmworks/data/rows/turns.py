"""The turns of a conversation as JSON holds them, into messages and back, nothing dropped. Knows no row type.

Read are OpenAI's chat turns, ShareGPT's (`from`, `value`), and the names that others give to parts of them
(`reasoning`, `thinking`, the role `developer`, content in parts). Arguments of a tool call are kept as the object that
they are, not as the text some write it as.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from lmworks.core.config import explain, nearest
from lmworks.core.messages import Message
from lmworks.data.rows.json_text import Decoder
from lmworks.data.rows.values import RowFault

_KNOWN = tuple(Message.model_fields)
_ALIASES = {"reasoning": "reasoning_content", "thinking": "reasoning_content"}
_ROLES = {
    "developer": "system", "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bing": "assistant", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
_CALLS = ("function_call", "function-call")
"""Senders whose turns are calls of tools, as JSON."""
_WEIGHTS = ("weight", "loss_weight")
"""OpenAI's and LLaMA-Factory's: whether a turn is learnt from."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")


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
    given = {str(key): value for key, value in turn.items() if value is not None}
    if "role" not in given and "content" not in given and ("from" in given or "value" in given):
        given = _sharegpt(number, given)
    if isinstance(role := given.get("role"), str):
        given["role"] = _ROLES.get(role.lower(), role.lower())
    _check_weight(number, given)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = _ALIASES.get(key, key)
        if name not in _KNOWN:
            raise RowFault("unknown field", f"message {number} has {key!r}{nearest(key, list(_KNOWN))}")
        if name in values:
            raise RowFault("malformed", f"message {number} gives {name!r} twice")
        values[name] = value
    if isinstance(parts := values.get("content"), (list, tuple)):
        values |= _of_parts(number, parts, values)
    calls = values.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        values["tool_calls"] = [_with_arguments(_nested(call), _as_value) for call in calls]
        if not calls:
            del values["tool_calls"]
        elif "content" not in values:
            values["content"] = ""  # a turn that only calls tools has null content in the chat layout
    try:
        return Message.model_validate(values)
    except ValidationError as error:
        raise RowFault("malformed", f"message {number}: {explain(Message, error)}") from None


def _sharegpt(number: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    """The turn with OpenAI's names; a call of tools becomes one."""
    if not isinstance(sender := turn.get("from"), str) or "value" not in turn:
        raise RowFault("malformed", f"turn {number} has no 'from' and 'value'")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if sender.lower() in _CALLS:
        return {"role": "assistant", "content": "", "tool_calls": read_calls(number, turn["value"]), **rest}
    return {"role": sender, "content": turn["value"], **rest}


def read_calls(number: int, value: object) -> list[dict[str, Any]]:
    """Calls of tools, given as one object with `name` and `arguments`, a list of them, or either as JSON in a string.

    Raises:
        RowFault: it is nothing of the kind.
    """
    try:
        calls = Decoder().whole(value) if isinstance(value, str) else value
    except RowFault as fault:
        raise RowFault("tool call", f"turn {number} calls a function with {str(value)[:80]!r}: {fault}") from None
    listed: list[Any] = calls if isinstance(calls, list) else [calls]
    if not listed or not all(isinstance(call, Mapping) and "name" in call for call in listed):
        raise RowFault("tool call", f"turn {number} calls a function without a 'name'")
    return [{"type": "function", "function": dict(call)} for call in listed]


def _check_weight(number: int, turn: dict[str, Any]) -> None:
    """Take out the weight of a turn if it says what holds anyway: the assistant is learnt, others are not."""
    for key in _WEIGHTS:
        weight, learnt = turn.pop(key, None), turn.get("role") == "assistant"
        if weight is not None and weight != learnt:
            raise RowFault(
                "turn weight",
                f"message {number} ({turn.get('role')}) has {key} {weight!r}; the assistant's turns are learnt and no "
                "others, so end the conversation before it or make it a part of the prompt",
            )


def _of_parts(number: int, parts: Sequence[object], others: Mapping[str, Any]) -> dict[str, Any]:
    """What content that is given in parts says: its text, the reasoning and calls of tools among it."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else "text" if isinstance(part, str) else type(part)
        told = part if isinstance(part, str) else next(
            (part[key] for key in ("text", "value", kind) if isinstance(part, Mapping) and part.get(key) is not None),
            None,
        )  # fmt: skip
        if kind == "tool_call":
            calls += read_calls(number, told)
        elif kind in (*_TEXT_PARTS, *_REASONING_PARTS) and isinstance(told, str):
            (thoughts if kind in _REASONING_PARTS else texts).append(told)
        else:
            raise RowFault("not text", f"message {number} has a part of type {kind!r}; only text can be tuned on")
    told = {"content": "".join(texts)}
    more = {"reasoning_content": "".join(thoughts), "tool_calls": calls}
    if twice := [name for name, value in more.items() if value and name in others]:
        raise RowFault("malformed", f"message {number} gives {twice[0]!r} twice")
    return told | {name: value for name, value in more.items() if value}


def _nested(call: object) -> object:
    """A call with its name and arguments where OpenAI puts them."""
    if isinstance(call, Mapping) and "name" in call and "function" not in call:
        outer = {key: value for key, value in call.items() if key not in ("name", "arguments")}
        return {"type": "function", **outer, "function": {k: call[k] for k in ("name", "arguments") if k in call}}
    return call


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
