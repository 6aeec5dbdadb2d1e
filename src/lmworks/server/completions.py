"""`POST /v1/completions`: texts or token ids in, their continuations out, whole or streamed. Knows no template."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request, Response

from lmworks.core.generation import TokenLogprob
from lmworks.protocol.completions import Completion, CompletionChoice, CompletionRequest, Prompt
from lmworks.protocol.logprobs import CompletionLogprobs, completion_logprobs
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


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    state, arrived = state_of(request), time.perf_counter()
    asked = parse_request(CompletionRequest, await read_body(request))
    model = state.model(asked.model)
    params = asked.sampling_params()
    prompts = await asyncio.to_thread(encode, model, asked.prompt)
    job = new_job("cmpl", model, prompts, params, "prompt")
    echoes = await asyncio.to_thread(echo, model, asked.prompt) if asked.echo else [""] * len(prompts)
    recording = state.recording(job, arrived)
    if asked.stream:
        return await stream_reply(request, chunks(job, recording, echoes, include_usage=asked.include_usage))
    return json_reply(await unless_disconnected(request, completion(job, recording, echoes)))


def encode(model: ServedModel, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt; those that are token ids already are taken as they are."""
    return [model.llm.prompts.text(p) if isinstance(p, str) else p for p in prompts]


def echo(model: ServedModel, prompts: Sequence[Prompt]) -> list[str]:
    """What `echo` puts before each completion."""
    return [p if isinstance(p, str) else model.llm.tokenizer.decode(p, skip_special_tokens=False) for p in prompts]


async def completion(job: Job, recording: Recording, echoes: Sequence[str]) -> Completion:
    """The whole response."""
    choices = [
        CompletionChoice(
            index=index,
            text=echoes[index // job.params.n] + choice.text,
            logprobs=_logprobs(job, choice.logprobs, 0),
            finish_reason="length" if choice.finish_reason == "length" else "stop",
        )
        for index, choice in enumerate(await complete(job, recording))
    ]
    return _body(job, recording, choices, Usage.of(recording.prompt_tokens, recording.completion_tokens))


async def chunks(
    job: Job, recording: Recording, echoes: Sequence[str], *, include_usage: bool
) -> AsyncGenerator[str, None]:
    """The response as server-sent events, then usage if asked for."""
    written = dict.fromkeys(range(job.num_choices), 0)
    opened: set[int] = set()
    stream = run(job, recording)
    try:
        async for index, delta in stream:
            text = delta.text if index in opened else echoes[index // job.params.n] + delta.text
            opened.add(index)
            if not (text or delta.logprobs or delta.finish_reason):
                continue
            reason = None if delta.finish_reason is None else "length" if delta.finish_reason == "length" else "stop"
            logprobs = _logprobs(job, delta.logprobs or (), written[index])
            written[index] += sum(map(len, logprobs.tokens)) if logprobs else 0
            choice = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)
            yield event(_body(job, recording, [choice]).model_dump_json())
    finally:
        await stream.aclose()
    if include_usage:
        usage = Usage.of(recording.prompt_tokens, recording.completion_tokens)
        yield event(_body(job, recording, [], usage).model_dump_json())
    yield DONE


def _body(job: Job, recording: Recording, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
    return Completion(
        id=job.id,
        created=recording.created,
        model=job.model.name,
        system_fingerprint=job.model.fingerprint,
        choices=choices,
        usage=usage,
    )


def _logprobs(job: Job, entries: Sequence[TokenLogprob], start: int) -> CompletionLogprobs | None:
    if job.params.logprobs is None:
        return None
    return completion_logprobs(entries, job.model.llm.tokenizer.token_bytes, start)
