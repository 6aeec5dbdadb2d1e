"""`POST /v1/completions`: texts or token ids in, their continuations out, whole or streamed. Knows no template."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request, Response

from lmworks.core.generation import FinishReason, TokenLogprob
from lmworks.engine.outputs import Delta
from lmworks.protocol.completions import Completion, CompletionChoice, CompletionRequest, Prompt
from lmworks.protocol.errors import ErrorReply
from lmworks.protocol.logprobs import CompletionLogprobs, LogprobLists, prompt_logprobs
from lmworks.protocol.sse import DONE, event
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer
from lmworks.server.caller import Caller
from lmworks.server.generation import Choice, Job, new_job
from lmworks.server.infill import encode_infill
from lmworks.server.openapi import described
from lmworks.server.recording import Recording
from lmworks.server.served_model import ServedModel
from lmworks.server.state import ServerState

router = APIRouter()


@router.post("/v1/completions", **described(CompletionRequest, Completion, streams=True))
async def completions(request: Request) -> Response:
    """Continue one or several prompts."""
    return await answer(request, prepare)


async def prepare(state: ServerState, body: bytes, caller: Caller) -> CompletionWriter:
    """Read a body and make ready to answer it.

    Raises:
        InvalidRequestError: the body or a prompt is impossible.
        ModelNotFoundError: there is no such model.
    """
    asked = parse_request(CompletionRequest, body)
    model, params = state.model(asked.model), asked.sampling_params()
    prompts = await asyncio.to_thread(encode, model, asked)
    job = new_job("cmpl-", model, prompts, params, asked, param="prompt", caller=caller, beams=asked.beams())
    return CompletionWriter(job, asked, await asyncio.to_thread(echoes, job, asked))


def encode(model: ServedModel, asked: CompletionRequest) -> list[list[int]]:
    """Token ids of each prompt; those that are token ids already are taken as they are."""
    if asked.suffix:
        return [encode_infill(model.llm.tokenizer, prompt, asked.suffix) for prompt in asked.prompt]
    return [model.llm.prompts.text(prompt) if isinstance(prompt, str) else prompt for prompt in asked.prompt]


def echoes(job: Job, asked: CompletionRequest) -> list[str]:
    """What stands before the completion of each prompt."""
    if not asked.echo:
        return [""] * len(job.prompts)
    cut = asked.truncate_prompt_tokens is not None

    def shown(prompt: Prompt, ids: Sequence[int]) -> str:
        if isinstance(prompt, str) and not cut:
            return prompt
        return job.model.llm.tokenizer.decode(ids, skip_special_tokens=job.params.skip_special_tokens)

    return [shown(prompt, ids) for prompt, ids in zip(asked.prompt, job.prompts, strict=True)]


class CompletionWriter:
    """Writes the answer to one request."""

    def __init__(self, job: Job, asked: CompletionRequest, echoes: Sequence[str]) -> None:
        self.job, self.stream = job, bool(asked.stream)
        self._asked, self._echoes = asked, echoes
        tokenizer = job.model.llm.tokenizer
        hidden = tokenizer.special_token_ids if job.params.skip_special_tokens else frozenset()
        self._lists = [
            LogprobLists(tokenizer.token_bytes, hidden, as_token_ids=bool(asked.return_tokens_as_token_ids))
            for _ in range(len(job.prompts) * job.n)
        ]
        self._opened: set[int] = set()

    def opening(self, _: Recording) -> str:
        """Nothing."""
        return ""

    def events(self, index: int, delta: Delta, recording: Recording) -> str:
        """One chunk, unless there is nothing to be told."""
        part = Choice()
        part.add(delta)
        opens = index not in self._opened
        self._opened.add(index)
        choice = self._choice(index, part, opens=opens)
        if not (choice.text or delta.logprobs or choice.logprobs or choice.token_ids or choice.finish_reason):
            return ""
        usage = recording.usage() if self._asked.continuous_usage else None
        return event(self._body([choice], recording, usage).model_dump_json())

    def ending(self, recording: Recording) -> str:
        """The chunk with usage, if asked for, and the end."""
        if not self._asked.include_usage:
            return DONE
        return event(self._body([], recording, recording.usage()).model_dump_json()) + DONE

    def failing(self, reply: ErrorReply) -> str:
        """The error, in place of a chunk."""
        return event(reply.to_json()) + DONE

    def whole(self, choices: Sequence[Choice], recording: Recording) -> Completion:
        """The response."""
        written = [self._choice(index, choice, opens=True) for index, choice in enumerate(choices)]
        return self._body(written, recording, recording.usage())

    def _choice(self, index: int, said: Choice, *, opens: bool) -> CompletionChoice:
        """A choice, or a part of it.

        Args:
            index: of the choice.
            said: what the engine said.
            opens: this is its beginning, where the prompt is echoed.
        """
        asked, job = self._asked, self.job
        number = index // job.n
        scores_only = asked.scores_only
        text = (
            ("" if scores_only else said.text)
            if not opens
            else self._echoes[number] + ("" if scores_only else said.text)
        )
        logprobs = self._logprobs(index, said, job.prompts[number] if opens and asked.echo else ())
        prompt = opens and asked.prompt_logprobs is not None
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason="length" if scores_only and said.finish_reason else finish_reason(said.finish_reason),
            stop_reason=said.stop_reason,
            token_ids=([] if scores_only else said.token_ids) if asked.return_token_ids else None,
            prompt_token_ids=list(job.prompts[number]) if asked.return_token_ids and opens else None,
            prompt_logprobs=prompt_logprobs(said.prompt_logprobs or (), job.model.llm.tokenizer.token_bytes)
            if prompt
            else None,
        )

    def _logprobs(self, index: int, said: Choice, prompt: Sequence[int]) -> CompletionLogprobs | None:
        """Of the echoed prompt, if any, and of what was generated."""
        if self._asked.logprobs is None:
            return None
        entries: list[TokenLogprob | None] = []
        if prompt:
            entries += said.prompt_logprobs or [None] * len(prompt)
        generated = [] if self._asked.scores_only else said.logprobs
        tokens = [*prompt, *(entry.token_id for entry in generated)]
        return self._lists[index].add(tokens, [*entries, *generated])

    def _body(self, choices: list[CompletionChoice], recording: Recording, usage: Usage | None) -> Completion:
        return Completion(
            id=self.job.id,
            created=recording.created,
            model=self.job.model.name,
            system_fingerprint=self.job.model.fingerprint,
            choices=choices,
            usage=usage,
        )


def finish_reason(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    """The engine's reason in OpenAI's words."""
    return None if reason is None else "length" if reason == "length" else "stop"
