"""Prompts put to a generator so that one failure is one failure, a few calls at a time. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lmworks.core.generation import Generator, RequestOutput
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams


@dataclass(frozen=True)
class Failure:
    """A prompt that the generator could not answer."""

    reason: str
    """Kind of error and its text."""


Answer = list[str] | Failure
"""The texts of one prompt's completions."""


def ask(generator: Generator, requests: Sequence[str], params: SamplingParams, concurrency: int) -> list[Answer]:
    """The completions of each request, in order, the same for any concurrency.

    Args:
        generator: chats.
        requests: the user's words, a conversation each.
        params: for all of them.
        concurrency: 1 hands all over in one call, which an engine batches; a failing call is repeated one by one.
            More is for generators over the network: so many calls of one request run at a time.
    """
    if concurrency == 1 and len(requests) > 1:
        try:
            outputs = generator.chat([_conversation(request) for request in requests], params)
        except Exception:  # noqa: BLE001 - any kind of generator; each prompt is tried alone and its error kept
            return [_alone(generator, request, params) for request in requests]
        assert len(outputs) == len(requests), "a generator gives one output per conversation"
        return [_texts(output) for output in outputs]
    with ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(lambda request: _alone(generator, request, params), requests))


def _alone(generator: Generator, request: str, params: SamplingParams) -> Answer:
    try:
        return _texts(generator.chat([_conversation(request)], params)[0])
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this prompt's failure
        return Failure(f"{type(error).__name__}: {error}")


def _texts(output: RequestOutput) -> Answer:
    texts = [completion.text.strip() for completion in output.outputs if completion.finish_reason != "abort"]
    return texts or Failure("the generator gave up")


def _conversation(request: str) -> list[Message]:
    return [Message(role="user", content=request)]
