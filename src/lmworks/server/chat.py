"""`POST /v1/chat/completions`: a conversation in, an assistant turn out, whole or streamed. Knows no sampling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request, Response

from lmworks.core.errors import RequestError, TokenizerError
from lmworks.core.generation import TokenLogprob
from lmworks.core.messages import Message
from lmworks.protocol.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.logprobs import ChatLogprobs, chat_logprobs
from lmworks.protocol.sse import DONE, event
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import parse_request
from lmworks.server.disconnect import unless_disconnected
from lmworks.server.generation import Job, complete, new_job, run
from lmworks.server.recording import Recording
from lmworks.server.replies import json_reply, stream_reply
from lmworks.server.served_model import ServedModel
from lmworks.server.state import read_body, state_of

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    state, arrived = state_of(request), time.perf_counter()
    asked = parse_request(ChatCompletionRequest, await read_body(request))
    model = state.model(asked.model)
    params = asked.sampling_params()
    prompt = await asyncio.to_thread(encode, model, asked.to_messages())
    job = new_job("chatcmpl", model, [prompt], params, "messages")
    recording = state.recording(job, arrived)
    if asked.stream:
        return await stream_reply(request, chunks(job, recording, include_usage=asked.include_usage))
    return json_reply(await unless_disconnected(request, completion(job, recording)))


def encode(model: ServedModel, messages: Sequence[Message]) -> Sequence[int]:
    """The prompt that opens the assistant's turn.

    Raises:
        InvalidRequestError: the model has no chat template, or its template refuses the conversation.
    """
    if not model.can_chat:
        raise InvalidRequestError(
            f"The model {model.name!r} has no chat template", "Use /v1/completions instead", param="model"
        )
    try:
        return model.llm.prompts.chat(messages)
    except (TokenizerError, RequestError) as error:
        raise InvalidRequestError(error.problem, error.remedy, param="messages") from error


async def completion(job: Job, recording: Recording) -> ChatCompletion:
    """The whole response."""
    choices = [
        ChatChoice(
            index=index,
            message=AssistantMessage(content=choice.text),
            logprobs=_logprobs(job, choice.logprobs),
            finish_reason="length" if choice.finish_reason == "length" else "stop",
        )
        for index, choice in enumerate(await complete(job, recording))
    ]
    return ChatCompletion(
        id=job.id,
        created=recording.created,
        model=job.model.name,
        choices=choices,
        usage=Usage.of(recording.prompt_tokens, recording.completion_tokens),
        system_fingerprint=job.model.fingerprint,
    )


async def chunks(job: Job, recording: Recording, *, include_usage: bool) -> AsyncGenerator[str, None]:
    """The response as server-sent events: the role, the text, the ending of each choice, then usage if asked for."""

    def framed(choices: list[ChatChunkChoice], usage: Usage | None = None) -> str:
        chunk = ChatCompletionChunk(
            id=job.id,
            created=recording.created,
            model=job.model.name,
            system_fingerprint=job.model.fingerprint,
            choices=choices,
            usage=usage,
        )
        return event(chunk.model_dump_json())

    opened: set[int] = set()
    stream = run(job, recording)
    try:
        async for index, delta in stream:
            if index not in opened:
                opened.add(index)
                yield framed([ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))])
            logprobs = _logprobs(job, delta.logprobs or ())
            if delta.text or (logprobs and logprobs.content):
                yield framed([ChatChunkChoice(index=index, delta=ChatDelta(content=delta.text), logprobs=logprobs)])
            if delta.finish_reason is not None:
                reason = "length" if delta.finish_reason == "length" else "stop"
                yield framed([ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=reason)])
    finally:
        await stream.aclose()
    if include_usage:
        yield framed([], Usage.of(recording.prompt_tokens, recording.completion_tokens))
    yield DONE


def _logprobs(job: Job, entries: Sequence[TokenLogprob]) -> ChatLogprobs | None:
    if job.params.logprobs is None:
        return None
    return chat_logprobs(entries, job.model.llm.tokenizer.token_bytes)
