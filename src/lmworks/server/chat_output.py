"""What a parser finds in a completion, as chat messages and as the deltas of a stream. Knows no request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lmworks.protocol.chat_response import AssistantMessage, ChatDelta
from lmworks.protocol.output_events import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallStart
from lmworks.protocol.tools import FunctionCall, ToolCall, ToolCallDelta


@dataclass
class FoundCall:
    """One call of a tool as it grows."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Said:
    """Everything a completion said."""

    content: str = ""
    reasoning: str = ""
    calls: list[FoundCall] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Said:
        """Put events together."""
        said = cls()
        for event in events:
            match event:
                case ContentDelta():
                    said.content += event.text
                case ReasoningDelta():
                    said.reasoning += event.text
                case ToolCallStart():
                    said.calls.append(FoundCall(event.id, event.name))
                case ToolCallArguments():
                    said.calls[event.index].arguments += event.text
        return said

    def message(self) -> AssistantMessage:
        """As a chat message; there is no content where there are calls and no words."""
        calls = [
            ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in self.calls
        ]
        return AssistantMessage(
            content=None if calls and not self.content.strip() else self.content,
            reasoning=self.reasoning or None,
            reasoning_content=self.reasoning or None,
            tool_calls=calls or None,
        )


def deltas_of(events: Iterable[Event]) -> Iterator[ChatDelta]:
    """Events as the deltas of a stream: of a call its id and name first, then pieces of its arguments."""
    for event in events:
        match event:
            case ContentDelta():
                yield ChatDelta(content=event.text)
            case ReasoningDelta():
                yield ChatDelta(reasoning=event.text, reasoning_content=event.text)
            case ToolCallStart():
                function = FunctionCall(name=event.name, arguments="")
                call = ToolCallDelta(index=event.index, id=event.id, type="function", function=function)
                yield ChatDelta(tool_calls=[call])
            case ToolCallArguments():
                call = ToolCallDelta(index=event.index, function=FunctionCall(arguments=event.text))
                yield ChatDelta(tool_calls=[call])


def wanted(events: Iterable[Event], *, reasoning: bool, parallel: bool) -> list[Event]:
    """Events without what the client does not want.

    Args:
        events: what a parser found.
        reasoning: whether thoughts are shown.
        parallel: whether there may be more than one call.
    """

    def shown(event: Event) -> bool:
        match event:
            case ReasoningDelta():
                return reasoning
            case ToolCallStart() | ToolCallArguments():
                return parallel or event.index == 0
        return True

    return [event for event in events if shown(event)]
