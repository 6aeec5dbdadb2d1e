"""A completion's text, as it comes, into content, thoughts and calls of tools. Knows no engine and no grammar.

One state machine for every format. It decides by characters and never by pieces, so any cutting of one text into
pieces gives the same fields; a text that is there as a whole is one piece. What looks like a call and is none comes
back as content: nothing is lost but the formats' own markers and the whitespace beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.protocol.call_reader import CallReader
from lmworks.protocol.json_calls import JsonCalls, NamedCalls
from lmworks.protocol.json_scanner import Verdict
from lmworks.protocol.output_events import CallWriter, ContentDelta, Event, ReasoningDelta
from lmworks.protocol.python_calls import PythonCalls
from lmworks.protocol.reasoning import ReasoningFormat
from lmworks.protocol.tool_formats import ToolFormat
from lmworks.protocol.xml_calls import XmlCalls

_BARE = {"json": "[{", "python": "["}
"""What a call without a marker begins with."""


class OutputParser:
    """Reads one completion.

    Args:
        tool_format: how the model writes calls; None where the request has no tools.
        reasoning_format: how it marks thoughts; None leaves them in the content.
        starts_in_reasoning: the prompt has opened the thoughts.
        tools: of the request, as OpenAI writes them: tells texts from numbers where a format does not, and JSON
            that names no tool from a call where a format has no marker.
    """

    def __init__(
        self,
        tool_format: ToolFormat | None = None,
        reasoning_format: ReasoningFormat | None = None,
        starts_in_reasoning: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._tool_format, self._reasoning_format = tool_format, reasoning_format
        self._events: list[Event] = []
        self._writer = None if tool_format is None else CallWriter(tool_format, tools, self._events)
        self._reader: CallReader | None = None
        self._thinks = starts_in_reasoning and reasoning_format is not None
        self._fresh = True
        """No content and no call yet: thoughts may begin, and a call without a marker."""
        self._trims = self._thinks
        """A format's marker came last: whitespace after it is the format's."""
        self._called = False
        self._held = ""
        """Text that may become a marker, with the whitespace before it."""
        self._raw = ""
        """What the reader was fed and has not passed on, with the marker before it."""

    def add(self, text: str) -> list[Event]:
        """Take more of the text; returns what is certain by now."""
        rest = text
        while rest:
            rest = self._read_call(self._reader, rest) if self._reader is not None else self._read_text(rest)
        return self._taken()

    def finish(self) -> list[Event]:
        """The text is over; returns what was held back."""
        if self._reader is not None:
            self._reader.finish()
            self._held, self._reader = "" if self._reader.represented else self._raw, None
        if self._held.strip() or not (self._trims or self._called):
            self._emit(self._held.rstrip() if self._thinks else self._held)
        self._held = ""
        return self._taken()

    def _read_text(self, rest: str) -> str:
        """Content or thoughts up to the next marker; returns what comes after it."""
        text, self._held = self._held + rest, ""
        if self._trims:
            text = text.lstrip()
        if self._begins_bare(text):
            begin = len(text) - len(text.lstrip())
            self._reader, self._raw = self._new_reader(bare=True), text[:begin]
            return text[begin:]
        markers = self._markers(text)
        found = min(((at, marker) for marker in markers if (at := text.find(marker)) >= 0), default=None)
        if found is None:
            shown = text[: len(text) - _partial(text, markers)].rstrip()
            self._emit(shown)
            self._held = text[len(shown) :]
            return ""
        at, marker = found
        shown = text[:at].rstrip()
        self._emit(shown)
        self._pass(marker, text[len(shown) : at])
        return text[at + len(marker) :]

    def _markers(self, text: str) -> list[str]:
        """What to look for now."""
        tool, reasoning = self._tool_format, self._reasoning_format
        markers = [] if tool is None or self._thinks else [tool.begin, *tool.section]
        if reasoning is not None:
            markers += [reasoning.end] if self._thinks else reasoning.silent
            # A model may repeat the marker with which the prompt ended.
            begins = self._trims if self._thinks else self._fresh
            start = text.lstrip()[: len(reasoning.begin)]
            if (begins and reasoning.begin.startswith(start)) or (reasoning.anywhere and not self._thinks):
                markers.append(reasoning.begin)
        return [marker for marker in markers if marker]

    def _pass(self, marker: str, space: str) -> None:
        """Go beyond a marker; the whitespace before it is the format's, too."""
        reasoning = self._reasoning_format
        if self._tool_format is not None and not self._thinks and marker == self._tool_format.begin:
            self._reader, self._raw = self._new_reader(bare=False), space + marker
            return
        self._trims = True
        if reasoning is not None and marker in (reasoning.begin, reasoning.end):
            self._thinks = marker == reasoning.begin

    def _begins_bare(self, text: str) -> bool:
        tool = self._tool_format
        if tool is None or not tool.bare or not self._fresh or self._thinks:
            return False
        return text.lstrip()[:1] in tuple(_BARE[tool.syntax])

    def _new_reader(self, bare: bool) -> CallReader:
        tool, writer = self._tool_format, self._writer
        assert tool is not None, "calls have a format"
        assert writer is not None, "calls have a writer"
        match tool.syntax:
            case "json":
                return JsonCalls(tool, writer, bare)
            case "named":
                return NamedCalls(tool, writer)
            case "python":
                return PythonCalls(tool, writer, bare)
            case "xml":
                return XmlCalls(tool, writer)

    def _read_call(self, reader: CallReader, rest: str) -> str:
        """Calls up to the end of the last; returns what comes after it."""
        raw = self._raw
        for at, character in enumerate(rest):
            raw += character
            verdict = reader.feed(character)
            if verdict is Verdict.MORE:
                raw = "" if reader.represented else raw
                continue
            self._reader, self._raw = None, ""
            if verdict is Verdict.FAULT:
                self._trims = False
                self._emit(raw[:-1])
                return rest[at:]
            self._fresh, self._trims, self._called = False, False, True
            return (raw if verdict is Verdict.BEFORE else "") + rest[at + 1 :]
        self._raw = raw
        return ""

    def _emit(self, text: str) -> None:
        if not text:
            return
        self._trims = False
        self._fresh = self._fresh and self._thinks
        self._events.append(ReasoningDelta(text) if self._thinks else ContentDelta(text))

    def _taken(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events


def _partial(text: str, markers: list[str]) -> int:
    """Characters at the end of a text that may be the beginning of a marker."""
    longest = min(len(text), max(map(len, markers), default=1) - 1)
    ends = (text[-n:] for n in range(longest, 0, -1))
    return next((len(end) for end in ends if any(marker.startswith(end) for marker in markers)), 0)
