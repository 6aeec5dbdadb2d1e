"""Prompts put to a generator so that one failure is one failure, a few calls at a time. Knows no method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from lmworks.core.generation import Generator, RequestOutput
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams


@dataclass(frozen=True)
class Failure:
    """A prompt that the generator could not answer."""

    reason: str
    """Kind of error and its text."""


@dataclass(frozen=True)
class Answer:
    """The completions of one prompt."""

    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    """Of each text, whether it came to its own end; else it was cut off at the most tokens allowed."""
    prompt_tokens: int
    completion_tokens: int
    """Of all texts together."""


Keep = Callable[[int, Answer], None]
"""Is told each answer as it comes, with the number of its request."""


def ask(
    generator: Generator, requests: Sequence[str], params: SamplingParams, concurrency: int, keep: Keep
) -> list[Answer | Failure]:
    """The completions of each request, in order, the same for any concurrency.

    Args:
        generator: chats.
        requests: the user's words, a conversation each.
        params: for all of them.
        concurrency: 1 hands all over in one call, which an engine batches; a failing call is repeated one by one.
            More is for generators over the network: so many calls of one request run at a time.
        keep: is called by one thread at a time, before that thread asks for more.
    """
    if concurrency == 1 and len(requests) > 1:
        try:
            outputs = generator.chat([_conversation(request) for request in requests], params)
        except Exception:  # noqa: BLE001 - any kind of generator; each prompt is tried alone and its error kept
            return [_kept(number, _alone(generator, one, params), keep) for number, one in enumerate(requests)]
        assert len(outputs) == len(requests), "a generator gives one output per conversation"
        return [_kept(number, _answer(output), keep) for number, output in enumerate(outputs)]
    one_at_a_time = Lock()

    def work(number: int) -> Answer | Failure:
        answer = _alone(generator, requests[number], params)
        with one_at_a_time:
            return _kept(number, answer, keep)

    with ThreadPoolExecutor(concurrency) as threads:
        return list(threads.map(work, range(len(requests))))


def _alone(generator: Generator, request: str, params: SamplingParams) -> Answer | Failure:
    try:
        return _answer(generator.chat([_conversation(request)], params)[0])
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this prompt's failure
        return Failure(f"{type(error).__name__}: {error}")


def _kept(number: int, answer: Answer | Failure, keep: Keep) -> Answer | Failure:
    if isinstance(answer, Answer):
        keep(number, answer)
    return answer


def _answer(output: RequestOutput) -> Answer | Failure:
    given = [completion for completion in output.outputs if completion.finish_reason != "abort"]
    if not given:
        return Failure("the generator gave up")
    counted = output.num_tokens or (len(output.prompt_token_ids), sum(len(one.token_ids) for one in given))
    finished = tuple(completion.finish_reason == "stop" for completion in given)
    return Answer(tuple(_readable(completion.text) for completion in given), finished, *counted)


def _readable(text: str) -> str:
    """The text without white space around it; nothing of one with half a character, which no file could hold."""
    return "" if any("\ud800" <= char <= "\udfff" for char in text) else text.strip()


def _conversation(request: str) -> list[Message]:
    return [Message(role="user", content=request)]
