"""The ShareGPT layout: `conversations` of `from`/`value`, with what LLaMA-Factory adds to it. Knows no file.

A preference has `chosen` and `rejected` turns beside the conversation; a call of tools is a turn `function_call`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmworks.core.config import nearest
from lmworks.core.messages import Message
from lmworks.data.rows.turns import read_turns
from lmworks.data.rows.values import CompletionRow, LabeledRow, PreferenceRow, Row, RowFault, TextRow, read_label

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "function_call": "assistant", "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip
_WRITTEN = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def read(fields: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]) -> Row:
    """A conversation, or a preference where `chosen` and `rejected` are given, or an answer labeled by `kto_tag`."""
    turns = fields["conversations"]
    if not isinstance(turns, list):
        raise RowFault("malformed", f"'conversations' is a {type(turns).__name__}, not a list of turns")
    opening: list[Any] = [{"from": "system", "value": fields["system"]}] if fields.get("system") else []
    messages = read_turns([_turn(n, turn) for n, turn in enumerate([*opening, *turns])], "conversations")
    extra = {key: value for key, value in fields.items() if key not in ("conversations", "system")}
    if "chosen" in extra and "rejected" in extra:
        answers = [read_turns([_turn(0, extra.pop(name))], name) for name in ("chosen", "rejected")]
        return PreferenceRow(messages, *answers, tools=tools, extra=extra)
    if "kto_tag" in extra:
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise RowFault("label", "'kto_tag' is given, but the last turn is no answer to anything")
        label = read_label(extra.pop("kto_tag"), "kto_tag")
        return LabeledRow(messages[:-1], messages[-1:], label, tools=tools, extra=extra)
    return TextRow(messages, tools=tools, extra=extra)


def write(row: Row) -> dict[str, Any]:
    """A conversation or a preference of single turns."""
    tools = {"tools": json.dumps(list(row.tools), ensure_ascii=False)} if row.tools else {}
    if isinstance(row, TextRow) and isinstance(row.text, tuple):
        return {"conversations": [_written(turn) for turn in row.text], **tools}
    if isinstance(row, CompletionRow) and isinstance(row.prompt, tuple) and isinstance(row.completion, tuple):
        raise RowFault("not expressible", "the layout 'sharegpt' has no place for the end of the prompt; convert first")
    if isinstance(row, PreferenceRow) and isinstance(row.prompt, tuple) and len(row.chosen) == len(row.rejected) == 1:
        answers = {name: _written(content[0]) for name, content in (("chosen", row.chosen), ("rejected", row.rejected))
                   if isinstance(content[0], Message)}  # fmt: skip
        return {"conversations": [_written(turn) for turn in row.prompt], **answers, **tools}
    raise RowFault("not expressible", f"the layout 'sharegpt' cannot hold this {row.kind} row")


def _turn(number: int, turn: object) -> dict[str, Any]:
    if isinstance(turn, Mapping) and {"role", "content"} <= set(turn) and "from" not in turn:
        return dict(turn)  # turns of `messages` under the name of the layout
    if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
        raise RowFault("malformed", f"turn {number} has no 'from' and 'value'")
    strange = sorted(key for key in turn if key not in ("from", "value", "weight") and turn[key] is not None)
    if strange:
        raise RowFault("unknown field", f"turn {number} has {strange[0]!r}{nearest(strange[0], ['from', 'value'])}")
    sender = str(turn["from"]).lower()
    if sender not in _ROLES:
        raise RowFault("malformed", f"turn {number} is from {turn['from']!r}, known are {', '.join(_ROLES)}")
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    if sender == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(number, turn["value"]), **weight}
    return {"role": _ROLES[sender], "content": turn["value"], **weight}


def _calls(number: int, value: object) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise RowFault("tool call", f"turn {number} calls a function with {value!r}, which is not JSON") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) and "name" in call for call in calls):
        raise RowFault("tool call", f"turn {number} calls a function without a 'name'")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _written(turn: Message) -> dict[str, Any]:
    if not turn.tool_calls:
        return {"from": _WRITTEN[turn.role], "value": turn.content}
    calls = [call.get("function", {}) for call in turn.tool_calls]
    return {"from": "function_call", "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)}
