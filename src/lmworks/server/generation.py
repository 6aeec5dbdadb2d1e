"""One HTTP request as engine requests: check, submit one per prompt, merge their deltas, abort what is abandoned.

Knows the engine's contract and the request's parameters; no route, no schema.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from lmworks.core.errors import EngineError, EngineOverloadedError
from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.core.sampling import BeamSearchParams, SamplingParams
from lmworks.engine.decoding.best_of import generated_params
from lmworks.engine.outputs import Delta
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.sampling import SamplingFields
from lmworks.server.beams import search_beams
from lmworks.server.caller import Caller
from lmworks.server.recording import Recording
from lmworks.server.served_model import ServedModel

STOPPED = EngineOverloadedError("the engine stopped before the answer was complete", "Try again later")


@dataclass(frozen=True)
class Job:
    """What the engine is asked: `params.n` completions of every prompt."""

    id: str
    model: ServedModel
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    n: int
    """Completions of each prompt that the client gets; the likeliest, where the engine makes more."""
    priority: int = 0
    cache_salt: str = ""
    beams: BeamSearchParams | None = None
    """Search instead of sampling."""

    @property
    def num_choices(self) -> int:
        """Completions that the engine makes, in all."""
        return len(self.prompts) * self.params.n

    @property
    def prompt_tokens(self) -> int:
        """Over all prompts."""
        return sum(len(prompt) for prompt in self.prompts)


@dataclass
class Choice:
    """One completion as it grows."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def logprob(self) -> float:
        """Of all tokens together, in nats; what `best_of` chooses by."""
        return math.fsum(entry.logprob for entry in self.logprobs)

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs or ())
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.stop_reason = delta.stop_reason if delta.finish_reason is not None else self.stop_reason


def new_job(
    prefix: str,
    model: ServedModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    asked: SamplingFields,
    *,
    param: str,
    caller: Caller,
    beams: BeamSearchParams | None = None,
) -> Job:
    """Check prompts and parameters against the model, before anything is queued.

    Args:
        prefix: of the response id, such as `chatcmpl-`.
        model: who shall answer.
        prompts: token ids.
        params: decoding parameters.
        asked: the request, for what concerns its treatment rather than its answer.
        param: the request field that holds the prompt, for error bodies.
        caller: who asks; their salt is joined with the request's own.
        beams: search instead of sampling.

    Raises:
        InvalidRequestError: the model generates nothing, a prompt is empty, a token id unknown, or there are more
            tokens than the context holds.
    """
    if model.llm.info.kind != "generate":
        raise InvalidRequestError(
            f"The model {model.name!r} embeds texts and generates none", "Ask another model", param="model"
        )
    vocabulary, limit = model.llm.tokenizer.vocab_size, model.llm.max_model_len
    named: Mapping[str, Sequence[int]] = {
        "logit_bias": list(params.logit_bias),
        "stop_token_ids": params.stop_token_ids,
        "allowed_token_ids": params.allowed_token_ids or (),
    }
    for name, ids in named.items():
        _check_ids(ids, vocabulary, name)
    cut = asked.truncate_prompt_tokens
    if cut is not None:
        kept = limit - (params.max_tokens or 1) if cut == -1 else cut
        kept = max(1, kept)
        prompts = [prompt[:kept] if asked.truncation_side == "right" else prompt[-kept:] for prompt in prompts]
    for prompt in prompts:
        if not prompt:
            raise InvalidRequestError("The prompt holds no tokens", "Send at least one", param=param)
        _check_ids(prompt, vocabulary, param)
        room = model.llm.prompts.room(prompt, limit)
        if room < (params.max_tokens or 1):
            wanted = "" if params.max_tokens is None else f" and {params.max_tokens} for the completion"
            raise InvalidRequestError(
                f"This model's maximum context length is {limit} tokens, and the request has {len(prompt)} tokens in "
                f"{param!r}{wanted}",
                f"Shorten {param!r}" + (" or ask for fewer tokens" if wanted else ""),
                param=param,
                code="context_length_exceeded",
            )
    own = asked.cache_salt or ""
    return Job(
        id=f"{prefix}{asked.request_id or uuid.uuid4().hex}",
        model=model,
        prompts=prompts,
        params=generated_params(params),
        n=params.n,
        beams=beams,
        priority=caller.priority if asked.priority is None else asked.priority,
        cache_salt=f"{caller.salt}/{own}" if own else caller.salt,
    )


def _check_ids(ids: Sequence[int], vocabulary: int, param: str) -> None:
    for token in ids:
        if not 0 <= token < vocabulary:
            raise InvalidRequestError(
                f"Token id {token} in {param!r} is out of vocabulary: there are {vocabulary} tokens",
                f"Send ids from 0 to {vocabulary - 1}",
                param=param,
            )


async def run(job: Job, recording: Recording) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield `(choice, delta)` of all completions as they come, and record them.

    Closing or cancelling the generator aborts whatever has not finished.

    Raises:
        EngineError: the engine refused the request, or dropped it half-way.
    """
    # The model's name is part of the engine's request id, so that its telemetry can be told apart.
    name = job.model.parent or job.model.name
    # Clients may give two requests one id; the engine must not, or the end of one would abort the other.
    call = uuid.uuid4().hex
    ids = [f"{name}/{job.id}-{call}.{number}" for number in range(len(job.prompts))]
    remaining = [job.params.n] * len(ids)
    refused = False
    deltas = _searched if job.beams is not None else _one if len(ids) == 1 else _merged
    stream = deltas(job, ids)
    try:
        async for number, delta in stream:
            choice = number * job.params.n + delta.index
            recording.add(choice, delta)
            remaining[number] -= delta.finish_reason is not None
            if delta.finish_reason == "abort":
                raise delta.error or STOPPED
            yield choice, delta
    except EngineError:
        refused = recording.completion_tokens == 0
        raise
    finally:
        await stream.aclose()
        for request_id, unfinished in zip(ids, remaining, strict=True):
            if unfinished > 0:
                job.model.llm.abort(request_id)
        recording.end(refused=refused)


async def complete(job: Job, recording: Recording) -> list[Choice]:
    """All completions, whole: `job.n` for each prompt. Errors as in `run`."""
    choices = [Choice() for _ in range(job.num_choices)]
    stream = run(job, recording)
    try:
        async for number, delta in stream:
            choices[number].add(delta)
    finally:
        await stream.aclose()
    if job.n == job.params.n:
        return choices
    made = [choices[at : at + job.params.n] for at in range(0, len(choices), job.params.n)]
    return [choice for those in made for choice in sorted(those, key=lambda c: -c.logprob)[: job.n]]


async def _searched(job: Job, ids: Sequence[str]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The results of beam search after each prompt."""
    assert job.beams is not None, "a search was asked for"
    for number, prompt in enumerate(job.prompts):
        for delta in await search_beams(job.model, prompt, job.beams, ids[number], job.cache_salt):
            yield number, delta


async def _one(job: Job, ids: Sequence[str], number: int = 0) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of one prompt, with its number."""
    deltas = job.model.llm.generate(
        job.prompts[number],
        job.params,
        ids[number],
        priority=job.priority,
        cache_salt=job.cache_salt,
        adapter=job.model.adapter,
    )
    async with aclosing(deltas):
        async for delta in deltas:
            yield number, delta


async def _merged(job: Job, ids: Sequence[str]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all prompts as they come; the first error ends them all."""
    queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async with aclosing(_one(job, ids, number)) as items:
                async for item in items:
                    queue.put_nowait(item)
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    pumps = [asyncio.create_task(pump(number)) for number in range(len(ids))]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
