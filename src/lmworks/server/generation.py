"""One HTTP request as engine requests: check, submit one per prompt, merge their deltas, abort what is abandoned.

Knows the engine's contract and the request's parameters; no route, no schema.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from lmworks.core.errors import EngineError, EngineOverloadedError
from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.core.sampling import SamplingParams
from lmworks.engine.outputs import Delta
from lmworks.protocol.errors import InvalidRequestError
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

    @property
    def num_choices(self) -> int:
        """Completions in all."""
        return len(self.prompts) * self.params.n

    @property
    def prompt_tokens(self) -> int:
        """Over all prompts."""
        return sum(len(prompt) for prompt in self.prompts)


@dataclass
class Choice:
    """One completion as it grows."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.logprobs.extend(delta.logprobs or ())
        self.finish_reason = delta.finish_reason or self.finish_reason


def new_job(
    prefix: str, model: ServedModel, prompts: Sequence[Sequence[int]], params: SamplingParams, param: str
) -> Job:
    """Check prompts and parameters against the model, before anything is queued.

    Args:
        prefix: of the response id, `chatcmpl` or `cmpl`.
        model: who shall answer.
        prompts: token ids.
        params: decoding parameters.
        param: the request field that holds the prompt, for error bodies.

    Raises:
        InvalidRequestError: an empty prompt, an unknown token id, or more tokens than the context holds.
    """
    vocabulary, limit = model.llm.tokenizer.vocab_size, model.llm.max_model_len
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        _check_ids(ids, vocabulary, name)
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
    return Job(f"{prefix}-{uuid.uuid4().hex}", model, prompts, params)


def _check_ids(ids: Sequence[int] | dict[int, float], vocabulary: int, param: str) -> None:
    for token in ids:
        if not 0 <= token < vocabulary:
            raise InvalidRequestError(
                f"Token id {token} in {param!r} is outside the vocabulary of {vocabulary}",
                f"Send ids from 0 to {vocabulary - 1}",
                param=param,
            )


async def run(job: Job, recording: Recording) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield `(choice, delta)` of all completions as they come, and record them.

    Closing or cancelling the generator aborts whatever has not finished.

    Raises:
        EngineError: the engine refused the request, or dropped it half-way.
    """
    queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()
    # The model's name is part of the engine's request id, so that its telemetry can be told apart.
    ids = [f"{job.model.name}/{job.id}-{number}" for number in range(len(job.prompts))]

    async def pump(number: int) -> None:
        try:
            async for delta in job.model.llm.generate(job.prompts[number], job.params, request_id=ids[number]):
                queue.put_nowait((number, delta))
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    pumps = [asyncio.create_task(pump(number)) for number in range(len(ids))]
    running, refused = len(pumps), False
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                refused = isinstance(item, EngineError) and recording.completion_tokens == 0
                raise item
            else:
                number, delta = item
                choice = number * job.params.n + delta.index
                recording.add(choice, delta)
                if delta.finish_reason == "abort":
                    raise delta.error or STOPPED
                yield choice, delta
    finally:
        for task, request_id in zip(pumps, ids, strict=True):
            if not task.done():
                task.cancel()
                job.model.llm.abort(request_id)
        recording.end(refused=refused)
        await asyncio.gather(*pumps, return_exceptions=True)


async def complete(job: Job, recording: Recording) -> list[Choice]:
    """All completions, whole."""
    choices = [Choice() for _ in range(job.num_choices)]
    stream = run(job, recording)
    try:
        async for number, delta in stream:
            choices[number].add(delta)
    finally:
        await stream.aclose()
    return choices
