"""The ShareGPT layout: `conversations` of `from`/`value`, with what LLaMA-Factory and Hermes add. Knows no file.

A preference has `chosen` and `rejected` turns beside the conversation; a call of tools is a turn `function_call`, or,
as Hermes writes it, JSON in tags inside a turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmworks.core.messages import Message
from lmworks.data.rows import hermes
from lmworks.data.rows.turns import read_turns
from lmworks.data.rows.values import CompletionRow, LabeledRow, PreferenceRow, Row, RowFault, TextRow, labeled

_WRITTEN = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def read(fields: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]) -> Row:
    """A conversation, or a preference where `chosen` and `rejected` are given, or an answer labeled by `kto_tag`."""
    turns = fields["conversations"]
    if not isinstance(turns, list):
        raise RowFault("malformed", f"'conversations' is a {type(turns).__name__}, not a list of turns")
    opening: list[Any] = [{"from": "system", "value": fields["system"]}] if fields.get("system") else []
    messages = hermes.read(read_turns([*opening, *turns], "conversations"))
    tools = tools or hermes.declared(messages)
    extra = {key: value for key, value in fields.items() if key not in ("conversations", "system")}
    if "chosen" in extra and "rejected" in extra:
        answers = [extra.pop(name) for name in ("chosen", "rejected")]
        read = [read_turns(one if isinstance(one, list) else [one], "answer") for one in answers]
        return PreferenceRow(messages, *read, tools=tools, extra=extra)
    if "kto_tag" in extra:
        return labeled(messages, extra.pop("kto_tag"), "kto_tag", tools=tools, extra=extra)
    return TextRow(messages, tools=tools, extra=extra)


def write(row: Row) -> dict[str, Any]:
    """A conversation, one with a label, or a preference of single turns."""
    tools = {"tools": json.dumps(list(row.tools), ensure_ascii=False)} if row.tools else {}
    if isinstance(row, TextRow) and isinstance(row.text, tuple):
        return {"conversations": [_written(turn) for turn in row.text], **tools}
    if isinstance(row, LabeledRow) and isinstance(row.prompt, tuple) and isinstance(row.completion, tuple):
        turns = [_written(turn) for turn in row.prompt + row.completion]
        return {"conversations": turns, "kto_tag": row.label, **tools}
    if isinstance(row, CompletionRow) and isinstance(row.prompt, tuple) and isinstance(row.completion, tuple):
        raise RowFault("not expressible", "the layout 'sharegpt' has no place for the end of the prompt; convert first")
    if isinstance(row, PreferenceRow) and isinstance(row.prompt, tuple) and len(row.chosen) == len(row.rejected) == 1:
        answers = {name: _written(content[0]) for name, content in (("chosen", row.chosen), ("rejected", row.rejected))
                   if isinstance(content[0], Message)}  # fmt: skip
        return {"conversations": [_written(turn) for turn in row.prompt], **answers, **tools}
    raise RowFault("not expressible", f"the layout 'sharegpt' cannot hold this {row.kind} row")


def _written(turn: Message) -> dict[str, Any]:
    if not turn.tool_calls:
        return {"from": _WRITTEN[turn.role], "value": turn.content}
    calls = [call.get("function", {}) for call in turn.tool_calls]
    return {"from": "function_call", "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)}
