"""What a completion's text turns out to be, piece by piece: content, thoughts, calls. Knows no format."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmworks.protocol.tool_formats import ToolFormat

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call begins; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More of the arguments of call `index`: pieces of one JSON object."""

    index: int
    text: str


Event = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


class CallWriter:
    """Numbers calls and writes their events.

    Args:
        tool_format: how calls are identified.
        tools: what may be called, as OpenAI writes it: `{"type": "function", "function": {"name", "parameters"}}`.
        events: where events go.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Mapping[str, Any]], events: list[Event]) -> None:
        functions = [tool.get("function", tool) for tool in tools]
        self.schemas: dict[str, Any] = {f["name"]: f.get("parameters") or {} for f in functions}
        """JSON Schemas of arguments, by function."""
        self._format = tool_format
        self._events = events
        self._count = 0

    def knows(self, name: str) -> bool:
        """Whether there is such a tool, as far as is known."""
        return not self.schemas or name in self.schemas

    def start(self, name: str) -> None:
        """Begin a call."""
        self._events.append(ToolCallStart(self._count, self._id(name), name))
        self._count += 1

    def arguments(self, text: str) -> None:
        """Go on with the last call."""
        if not text:
            return
        index, last = self._count - 1, self._events[-1] if self._events else None
        if isinstance(last, ToolCallArguments) and last.index == index:
            self._events[-1] = ToolCallArguments(index, last.text + text)
        else:
            self._events.append(ToolCallArguments(index, text))

    def _id(self, name: str) -> str:
        kind, _, length = self._format.call_id.partition("{random:")
        if length:
            return kind + "".join(secrets.choice(_ALPHABET) for _ in range(int(length.rstrip("}"))))
        return kind.format(name=name, index=self._count)
