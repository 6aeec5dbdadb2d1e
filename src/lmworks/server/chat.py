"""`POST /v1/chat/completions`: a conversation in, an assistant turn out, whole or streamed. Knows no sampling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from lmworks.core.generation import TokenLogprob
from lmworks.engine.outputs import Delta
from lmworks.protocol.chat import ChatCompletionRequest
from lmworks.protocol.chat_response import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatFinishReason,
)
from lmworks.protocol.errors import ErrorReply
from lmworks.protocol.logprobs import ChatLogprobs, PromptLogprobs, chat_logprobs, prompt_logprobs
from lmworks.protocol.output_events import Event
from lmworks.protocol.output_parser import OutputParser
from lmworks.protocol.sse import DONE, event
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer
from lmworks.server.caller import Caller
from lmworks.server.chat_output import Said, deltas_of, wanted
from lmworks.server.completions import finish_reason
from lmworks.server.conversation import Conversation, encode_conversation
from lmworks.server.generation import Choice, Job, new_job
from lmworks.server.openapi import described
from lmworks.server.recording import Recording
from lmworks.server.state import ServerState

router = APIRouter()


@router.post("/v1/chat/completions", **described(ChatCompletionRequest, ChatCompletion, streams=True))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    return await answer(request, prepare)


async def prepare(state: ServerState, body: bytes, caller: Caller) -> ChatWriter:
    """Read a body and make ready to answer it.

    Raises:
        InvalidRequestError: the body or the conversation is impossible.
        ModelNotFoundError: there is no such model.
    """
    asked = parse_request(ChatCompletionRequest, body)
    model, params, tools = state.model(asked.model), asked.sampling_params(), asked.offered_tools()
    conversation = await asyncio.to_thread(
        encode_conversation,
        model,
        asked.to_messages(),
        tools,
        asked.template_inputs(),
        param="messages",
        add_generation_prompt=asked.add_generation_prompt is not False,
        continue_final_message=bool(asked.continue_final_message),
    )
    params = conversation.constrained(
        params, asked.structured(), asked.tool_mode, parallel=asked.parallel_tool_calls is not False
    )
    job = new_job(
        "chatcmpl-",
        model,
        [conversation.prompt],
        params,
        asked,
        param="messages",
        caller=caller,
        beams=asked.beams(),
    )
    return ChatWriter(job, asked, conversation)


class ChatWriter:
    """Writes the answer to one request."""

    def __init__(self, job: Job, asked: ChatCompletionRequest, conversation: Conversation) -> None:
        self.job, self.stream = job, bool(asked.stream)
        self._asked, self._conversation = asked, conversation
        self._parsers: dict[int, OutputParser] = {}
        self._calls: set[int] = set()
        """Choices that have called a tool."""
        self._opened: set[int] = set()
        continued = asked.messages[-1].content if asked.echo and asked.messages[-1].role == "assistant" else None
        self._echo = continued or ""
        plain = job.params.logprobs is None and not asked.return_token_ids and not asked.continuous_usage
        self._frames: dict[int, tuple[str, str]] | None = {} if plain else None
        """What stands around the words of each choice in an event that holds nothing else, where that may be so."""

    def opening(self, _: Recording) -> str:
        """Nothing."""
        return ""

    def events(self, index: int, delta: Delta, recording: Recording) -> str:
        """The role, then what is said, then the ending of a choice."""
        text = ""
        if index not in self._opened:
            self._opened.add(index)
            text += self._first(index, delta, recording)
        if self._conversation.is_plain and self._frames is not None and delta.finish_reason is None:
            return text + self._words(index, delta.text, recording) if delta.text else text
        deltas = self._deltas(index, delta)
        logprobs = self._logprobs(delta.logprobs or ())
        ids = list(delta.token_ids) if self._asked.return_token_ids else None
        if not deltas and (ids or (logprobs and logprobs.content)):
            deltas = [ChatDelta(content="")]
        for number, part in enumerate(deltas):  # what is told of tokens stands in the first chunk
            if part.content and self._frames is not None:
                text += self._words(index, part.content, recording)
                continue
            first = number == 0
            choice = ChatChunkChoice(
                index=index, delta=part, logprobs=logprobs if first else None, token_ids=ids if first else None
            )
            text += self._chunk([choice], recording)
        if delta.finish_reason is not None:
            reason = self._finish_reason(delta, called=index in self._calls)
            choice = ChatChunkChoice(
                index=index, delta=ChatDelta(), finish_reason=reason, stop_reason=delta.stop_reason
            )
            text += self._chunk([choice], recording)
        return text

    def ending(self, recording: Recording) -> str:
        """The chunk with usage, if asked for, and the end."""
        usage = self._chunk([], recording, usage=recording.usage()) if self._asked.include_usage else ""
        return usage + DONE

    def failing(self, reply: ErrorReply) -> str:
        """The error, in place of a chunk."""
        return event(reply.to_json()) + DONE

    def whole(self, choices: Sequence[Choice], recording: Recording) -> ChatCompletion:
        """The response."""
        asked, job = self._asked, self.job
        reasoning = 0
        written = []
        for index, choice in enumerate(choices):
            said = self._said(choice)
            reasoning += len(job.model.llm.tokenizer.encode(said.reasoning)) if said.reasoning else 0
            said.content = self._echo + said.content
            written.append(
                ChatChoice(
                    index=index,
                    message=said.message(),
                    logprobs=self._logprobs(choice.logprobs),
                    finish_reason=self._finish_reason(choice, called=bool(said.calls)) or "stop",
                    stop_reason=choice.stop_reason,
                    token_ids=choice.token_ids if asked.return_token_ids else None,
                )
            )
        return ChatCompletion(
            id=job.id,
            created=recording.created,
            model=job.model.name,
            choices=written,
            usage=recording.usage(None if self._conversation.reasoning_format is None else reasoning),
            system_fingerprint=job.model.fingerprint,
            prompt_logprobs=self._prompt_logprobs(choices[0]),
            prompt_token_ids=list(job.prompts[0]) if asked.return_token_ids else None,
        )

    def _said(self, choice: Choice) -> Said:
        """A whole completion, read."""
        if self._conversation.is_plain:
            return Said(content=choice.text)
        parser = self._conversation.parser()
        return Said.of(self._wanted([*parser.add(choice.text), *parser.finish()]))

    def _deltas(self, index: int, delta: Delta) -> list[ChatDelta]:
        """What a stream says of a delta."""
        if self._conversation.is_plain:
            return [ChatDelta(content=delta.text)] if delta.text else []
        if index not in self._parsers:
            self._parsers[index] = self._conversation.parser()
        parser = self._parsers[index]
        events = parser.add(delta.text)
        if delta.finish_reason is not None:
            events += parser.finish()
        deltas = list(deltas_of(self._wanted(events)))
        if any(part.tool_calls for part in deltas):
            self._calls.add(index)
        return deltas

    def _wanted(self, events: list[Event]) -> list[Event]:
        asked = self._asked
        return wanted(
            events, reasoning=asked.include_reasoning is not False, parallel=asked.parallel_tool_calls is not False
        )

    def _finish_reason(self, ended: Choice | Delta, *, called: bool) -> ChatFinishReason | None:
        reason = finish_reason(ended.finish_reason)
        return "tool_calls" if called and reason == "stop" else reason

    def _first(self, index: int, delta: Delta, recording: Recording) -> str:
        """The chunk with the role, and what is echoed."""
        choice = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=self._echo))
        chunk = self._frame([choice], recording)
        if self._asked.continuous_usage:  # what the delta holds is told, and counted, in the chunks that follow
            before = recording.completion_tokens - len(delta.token_ids)
            chunk.usage = Usage.of(recording.prompt_tokens, before, recording.cached_tokens)
        chunk.prompt_token_ids = list(self.job.prompts[0]) if self._asked.return_token_ids else None
        chunk.prompt_logprobs = self._prompt_logprobs(delta)
        return event(chunk.model_dump_json())

    def _words(self, index: int, text: str, recording: Recording) -> str:
        """A chunk of words alone. There is one for every token, so all but the words is written once."""
        assert self._frames is not None, "the request wants nothing but words"
        if index not in self._frames:
            choice = ChatChunkChoice(index=index, delta=ChatDelta(content="\x00"))
            before, after = self._chunk([choice], recording).split('"\\u0000"')
            self._frames[index] = before, after
        before, after = self._frames[index]
        return before + json.dumps(text, ensure_ascii=False) + after

    def _chunk(self, choices: list[ChatChunkChoice], recording: Recording, usage: Usage | None = None) -> str:
        return event(self._frame(choices, recording, usage).model_dump_json())

    def _frame(
        self, choices: list[ChatChunkChoice], recording: Recording, usage: Usage | None = None
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.job.id,
            created=recording.created,
            model=self.job.model.name,
            system_fingerprint=self.job.model.fingerprint,
            choices=choices,
            usage=recording.usage() if self._asked.continuous_usage else usage,
        )

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if self.job.params.logprobs is None:
            return None
        return chat_logprobs(
            entries,
            self.job.model.llm.tokenizer.token_bytes,
            as_token_ids=bool(self._asked.return_tokens_as_token_ids),
        )

    def _prompt_logprobs(self, said: Choice | Delta) -> PromptLogprobs | None:
        if self._asked.prompt_logprobs is None:
            return None
        return prompt_logprobs(said.prompt_logprobs or (), self.job.model.llm.tokenizer.token_bytes)
