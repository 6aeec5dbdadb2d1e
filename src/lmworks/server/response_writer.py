"""Writes the answer to one request of `/v1/responses`, whole or as typed events. Knows no route."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.engine.outputs import Delta
from lmworks.protocol.errors import ErrorReply
from lmworks.protocol.output_events import Event
from lmworks.protocol.response_output import (
    IncompleteDetails,
    OutputReasoning,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Status,
    text_logprobs,
)
from lmworks.protocol.responses import ResponsesRequest
from lmworks.server.chat_output import wanted
from lmworks.server.conversation import Conversation
from lmworks.server.generation import Choice, Job
from lmworks.server.recording import Recording
from lmworks.server.response_events import ResponseEvents
from lmworks.server.response_store import ResponseStore, StoredResponse


class ResponseWriter:
    """Writes the answer, and stores it for requests that go on from it.

    Args:
        job: what the engine is asked.
        asked: the request.
        conversation: how the model's answer is read.
        history: items of earlier responses.
        store: where the answer is kept.
        owner: who asked.
    """

    def __init__(
        self,
        job: Job,
        asked: ResponsesRequest,
        conversation: Conversation,
        history: Sequence[dict[str, Any]],
        store: ResponseStore,
        owner: str,
    ) -> None:
        self.job, self.stream = job, bool(asked.stream)
        self._asked, self._history, self._store, self._owner = asked, history, store, owner
        self._parser, self._events = conversation.parser(), ResponseEvents()
        self._finish_reason: FinishReason | None = None
        self._created = int(time.time())

    def opening(self, recording: Recording) -> str:
        """The response as it begins."""
        values = self._response("in_progress").model_dump()
        return self._events.event("response.created", response=values) + self._events.event(
            "response.in_progress", response=values
        )

    def events(self, index: int, delta: Delta, recording: Recording) -> str:
        """What a delta adds to the output items."""
        return self._add(delta.text, delta.logprobs or (), delta.finish_reason)

    def ending(self, recording: Recording) -> str:
        """The response as it ended."""
        text = self._close()
        response = self._finish(recording)
        return text + self._events.event(f"response.{response.status}", response=response.model_dump())

    def failing(self, reply: ErrorReply) -> str:
        """The response as it failed."""
        response = self._response("failed")
        response.error = ResponseError(code="server_error", message=reply.message)
        return self._events.event("response.failed", response=response.model_dump())

    def whole(self, choices: Sequence[Choice], recording: Recording) -> ResponseObject:
        """The response."""
        (choice,) = choices
        self._add(choice.text, choice.logprobs, choice.finish_reason)
        self._close()
        return self._finish(recording)

    def _add(self, text: str, logprobs: Sequence[TokenLogprob], reason: FinishReason | None) -> str:
        found: list[Event] = self._parser.add(text)
        if reason is not None:
            found += self._parser.finish()
            self._finish_reason = reason
        found = wanted(found, reasoning=True, parallel=self._asked.parallel_tool_calls is not False)
        told = text_logprobs(logprobs, self.job.model.llm.tokenizer.token_bytes) if self._asked.with_logprobs else []
        return self._events.add(found, told)

    def _close(self) -> str:
        return self._events.close("incomplete" if self._finish_reason == "length" else "completed")

    def _finish(self, recording: Recording) -> ResponseObject:
        """The response as it ended, stored."""
        response = self._response("incomplete" if self._finish_reason == "length" else "completed", recording)
        response.completed_at = int(time.time())
        if self._asked.store is not False:
            body = response.model_dump_json()
            output = [item.model_dump() for item in response.output]
            conversation = [*self._history, *self._asked.input, *output]
            size = len(body) + len(json.dumps(conversation))
            stored = StoredResponse(self._owner, body, self._asked.input, conversation, size)
            self._store.put(self.job.id, stored)
        return response

    def _response(self, status: Status, recording: Recording | None = None) -> ResponseObject:
        """The response in a state, with usage where the counts are known."""
        asked, params = self._asked, self.job.params
        text = {} if asked.text is None else asked.text.model_dump(by_alias=True, exclude_none=True)
        choice = asked.tool_choice
        return ResponseObject(
            id=self.job.id,
            created_at=self._created,
            status=status,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            model=self.job.model.name,
            output=list(self._events.items),
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            previous_response_id=asked.previous_response_id,
            reasoning={"effort": None, "summary": None}
            if asked.reasoning is None
            else asked.reasoning.model_dump(include={"effort"}) | {"summary": None},
            store=asked.store is not False,
            temperature=params.temperature,
            text={"format": {"type": "text"}, **text},
            tool_choice=choice.model_dump() if hasattr(choice, "model_dump") else choice or "auto",
            tools=[tool.model_dump() for tool in asked.tools or ()],
            top_logprobs=asked.top_logprobs or 0,
            top_p=params.top_p,
            truncation=asked.truncation or "disabled",
            usage=None if recording is None else ResponseUsage.of(recording.usage(self._reasoning_tokens())),
            user=asked.user,
        )

    def _reasoning_tokens(self) -> int:
        thoughts = [item.content[0].text for item in self._events.items if isinstance(item, OutputReasoning)]
        return sum(map(len, self.job.model.llm.tokenizer.encode_batch(thoughts)))
