"""Calls of tools that stand as tagged JSON in the text of turns, as Hermes writes them. Knows no row type.

`<tool_call>{"name": …, "arguments": …}</tool_call>` in a turn of the assistant, `<tool_response>…</tool_response>` in
one of a tool, `<tools>[…]</tools>` in the system's. What stands in a tag and is no such JSON stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.core.messages import Message
from lmworks.data.rows.json_text import Decoder
from lmworks.data.rows.turns import read_calls
from lmworks.data.rows.values import RowFault

_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)


def read(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns with tagged calls as calls, and with each tagged response as a turn of its own."""
    return tuple(made for turn in turns for made in _read(turn))


def declared(turns: Sequence[Message]) -> tuple[Mapping[str, Any], ...]:
    """The tools that the system's turn lists in tags; they stay in its text too."""
    found = _TOOLS.findall(turns[0].content) if turns[0].role == "system" else []
    for text in found:  # the first one may be talk about the tags
        try:
            tools = Decoder().whole(text)
        except RowFault:
            continue
        if isinstance(tools, list) and tools and all(isinstance(tool, Mapping) for tool in tools):
            return tuple(tools)
    return ()


def _read(turn: Message) -> list[Message]:
    if turn.role == "tool" and (responses := _RESPONSE.findall(turn.content)):
        if not _RESPONSE.sub("", turn.content):
            return [turn.model_copy(update={"content": response.strip()}) for response in responses]
    elif turn.role == "assistant" and not turn.tool_calls and (written := _CALL.findall(turn.content)):
        try:
            calls = [call for one in written for call in read_calls(0, one)]
        except RowFault:
            return [turn]
        return [turn.model_copy(update={"content": _CALL.sub("", turn.content), "tool_calls": calls})]
    return [turn]
