"""What a model says as the output items of a response and as the typed events of its stream.

One state machine for both: an item opens when the model begins to think, to speak or to call, and closes when it does
something else. Events are numbered from 0. Knows no request and no engine.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

from lmworks.protocol.output_events import ContentDelta, Event, ReasoningDelta, ToolCallStart
from lmworks.protocol.response_output import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
)
from lmworks.protocol.sse import event as framed

T = TypeVar("T", OutputMessage, OutputReasoning, OutputCall)

PREFIXES = {OutputMessage: "msg", OutputReasoning: "rs", OutputCall: "fc"}


class ResponseEvents:
    """One response as it grows."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        """Those that are closed, and the open one last."""
        self._number = 0
        self._open = False

    def event(self, kind: str, **fields: Any) -> str:
        """A framed event under the next number."""
        values = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return framed(json.dumps(values, ensure_ascii=False), kind)

    def add(self, events: Sequence[Event], logprobs: list[dict[str, Any]]) -> str:
        """Take what a parser found; returns the events that tell of it.

        Args:
            events: in their order.
            logprobs: of the tokens they came from; told with the first words among them.
        """
        text = ""
        for found in events:
            match found:
                case ContentDelta():
                    text += self._enter(OutputMessage)
                    text += self._words(found.text, logprobs)
                    logprobs = []
                case ReasoningDelta():
                    text += self._enter(OutputReasoning)
                    item = self._item(OutputReasoning)
                    item.content[0].text += found.text
                    text += self._part_event("response.reasoning_text.delta", delta=found.text)
                case ToolCallStart():
                    text += self._enter(OutputCall, call_id=found.id, name=found.name)
                case _:
                    self._item(OutputCall).arguments += found.text
                    text += self._item_event("response.function_call_arguments.delta", delta=found.text)
        return text

    def close(self, status: ItemStatus) -> str:
        """End the last item; a response that says nothing has an empty message."""
        text = "" if self.items else self._enter(OutputMessage)
        return text + self._leave(status)

    def _words(self, words: str, logprobs: list[dict[str, Any]]) -> str:
        part = self._item(OutputMessage).content[0]
        part.text += words
        part.logprobs.extend(logprobs)
        return self._part_event("response.output_text.delta", delta=words, logprobs=logprobs)

    def _enter(self, kind: type[OutputItem], **fields: str) -> str:
        """Open an item of a kind, unless one is open that can go on."""
        if self._open and isinstance(self.items[-1], kind) and kind is not OutputCall:
            return ""
        text = self._leave("completed") if self._open else ""
        identifier = f"{PREFIXES[kind]}_{uuid.uuid4().hex}"
        self._open = True
        if kind is OutputCall:
            call = OutputCall(id=identifier, arguments="", status="in_progress", **fields)
            self.items.append(call)
            return text + self._added(call.model_dump())
        if kind is OutputMessage:
            message = OutputMessage(id=identifier, status="in_progress", content=[OutputText(text="", logprobs=[])])
            self.items.append(message)
        else:
            self.items.append(
                OutputReasoning(id=identifier, summary=[], content=[ReasoningText(text="")], status="in_progress")
            )
        item = self.items[-1].model_dump()
        part = item["content"][0]
        text += self._added({**item, "content": []})
        return text + self._part_event("response.content_part.added", part=part)

    def _leave(self, status: ItemStatus) -> str:
        """Close the open item."""
        item = self.items[-1]
        item.status = status
        self._open = False
        values = item.model_dump()
        match item:
            case OutputCall():
                text = self._item_event(
                    "response.function_call_arguments.done", arguments=item.arguments, name=item.name
                )
            case OutputMessage():
                part = values["content"][0]
                text = self._part_event("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
                text += self._part_event("response.content_part.done", part=part)
            case OutputReasoning():
                part = values["content"][0]
                text = self._part_event("response.reasoning_text.done", text=part["text"])
                text += self._part_event("response.content_part.done", part=part)
        return text + self.event("response.output_item.done", output_index=len(self.items) - 1, item=values)

    def _added(self, item: dict[str, Any]) -> str:
        return self.event("response.output_item.added", output_index=len(self.items) - 1, item=item)

    def _item(self, kind: type[T]) -> T:
        item = self.items[-1]
        assert isinstance(item, kind), "the open item is of the kind that goes on"
        return item

    def _item_event(self, kind: str, **fields: Any) -> str:
        return self.event(kind, item_id=self.items[-1].id, output_index=len(self.items) - 1, **fields)

    def _part_event(self, kind: str, **fields: Any) -> str:
        return self._item_event(kind, content_index=0, **fields)
