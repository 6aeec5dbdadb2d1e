"""`POST /v1/chat/completions`: a conversation in, an assistant turn out, whole or streamed. Knows no sampling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from lmworks.core.errors import RequestError, TokenizerError
from lmworks.core.generation import TokenLogprob
from lmworks.engine.outputs import Delta
from lmworks.protocol.chat import ChatCompletionRequest
from lmworks.protocol.chat_response import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
)
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from lmworks.protocol.sse import event
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer
from lmworks.server.caller import Caller
from lmworks.server.completions import finish_reason
from lmworks.server.generation import Choice, Job, new_job
from lmworks.server.openapi import described
from lmworks.server.recording import Recording
from lmworks.server.served_model import ServedModel
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
    model, params = state.model(asked.model), asked.sampling_params()
    prompt = await asyncio.to_thread(encode, model, asked)
    job = new_job("chatcmpl", model, [prompt], params, asked, param="messages", salt=caller.salt, beams=asked.beams())
    return ChatWriter(job, asked)


def encode(model: ServedModel, asked: ChatCompletionRequest) -> Sequence[int]:
    """The prompt that opens the assistant's turn.

    Raises:
        InvalidRequestError: the model has no chat template, or its template refuses the conversation.
    """
    if not model.can_chat:
        raise InvalidRequestError(
            f"The model {model.name!r} has no chat template", "Use /v1/completions instead", param="model"
        )
    try:
        return model.llm.prompts.chat(
            asked.to_messages(),
            add_generation_prompt=asked.add_generation_prompt is not False,
            continue_final_message=bool(asked.continue_final_message),
            inputs=asked.template_inputs(),
        )
    except InvalidRequestError:
        raise
    except (TokenizerError, RequestError) as error:
        raise InvalidRequestError(error.problem, error.remedy, param="messages") from error


class ChatWriter:
    """Writes the answer to one request."""

    def __init__(self, job: Job, asked: ChatCompletionRequest) -> None:
        self.job, self.stream = job, bool(asked.stream)
        self._asked = asked
        self._opened: set[int] = set()
        continued = asked.messages[-1].content if asked.echo and asked.messages[-1].role == "assistant" else None
        self._echo = continued or ""
        plain = job.params.logprobs is None and not asked.return_token_ids and not asked.continuous_usage
        self._frames: dict[int, tuple[str, str]] | None = {} if plain else None
        """What stands around the text of each choice in an event that holds nothing else, where that may be so."""

    def opening(self, _: Recording) -> str:
        """Nothing."""
        return ""

    def events(self, index: int, delta: Delta, recording: Recording) -> str:
        """The role, then the text, then the ending of a choice."""
        text = ""
        if index not in self._opened:
            self._opened.add(index)
            text += self._first(index, delta, recording)
        if delta.finish_reason is None and self._frames is not None:
            return text + self._plain(index, delta.text, recording) if delta.text else text
        logprobs = self._logprobs(delta.logprobs or ())
        ids = list(delta.token_ids) if self._asked.return_token_ids else None
        if delta.text or ids or (logprobs and logprobs.content):
            choice = ChatChunkChoice(index=index, delta=ChatDelta(content=delta.text), logprobs=logprobs, token_ids=ids)
            text += self._chunk([choice], recording)
        if delta.finish_reason is not None:
            reason = finish_reason(delta.finish_reason)
            choice = ChatChunkChoice(
                index=index, delta=ChatDelta(), finish_reason=reason, stop_reason=delta.stop_reason
            )
            text += self._chunk([choice], recording)
        return text

    def ending(self, recording: Recording) -> str:
        """The chunk with usage, if asked for."""
        return self._chunk([], recording, usage=recording.usage()) if self._asked.include_usage else ""

    def whole(self, choices: Sequence[Choice], recording: Recording) -> ChatCompletion:
        """The response."""
        asked = self._asked
        return ChatCompletion(
            id=self.job.id,
            created=recording.created,
            model=self.job.model.name,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=self._echo + choice.text),
                    logprobs=self._logprobs(choice.logprobs),
                    finish_reason=finish_reason(choice.finish_reason) or "stop",
                    stop_reason=choice.stop_reason,
                    token_ids=choice.token_ids if asked.return_token_ids else None,
                )
                for index, choice in enumerate(choices)
            ],
            usage=recording.usage(),
            system_fingerprint=self.job.model.fingerprint,
            prompt_logprobs=prompt_logprobs(choices[0].prompt_logprobs or (), self.job.model.llm.tokenizer.token_bytes)
            if asked.prompt_logprobs is not None
            else None,
            prompt_token_ids=list(self.job.prompts[0]) if asked.return_token_ids else None,
        )

    def _first(self, index: int, delta: Delta, recording: Recording) -> str:
        """The chunk with the role, and what is echoed."""
        choice = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=self._echo))
        chunk = self._frame([choice], recording)
        if self._asked.return_token_ids:
            chunk.prompt_token_ids = list(self.job.prompts[0])
        if self._asked.prompt_logprobs is not None:
            token_bytes = self.job.model.llm.tokenizer.token_bytes
            chunk.prompt_logprobs = prompt_logprobs(delta.prompt_logprobs or (), token_bytes)
        return event(chunk.model_dump_json())

    def _plain(self, index: int, text: str, recording: Recording) -> str:
        """A chunk of text alone. There is one for every token, so all but the text is written once."""
        assert self._frames is not None
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
        return chat_logprobs(entries, self.job.model.llm.tokenizer.token_bytes)
