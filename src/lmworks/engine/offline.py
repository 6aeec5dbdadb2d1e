"""Requests run to their end, and what came out put together. Knows no prompt text and no thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import sleep

from lmworks.core.generation import CompletionOutput, TokenLogprob
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.outputs import Delta
from lmworks.engine.request import Request


def run_requests(
    engine: LLMEngine, requests: Sequence[Request], finished: Callable[[], None] | None = None
) -> dict[str, list[Delta]]:
    """Step until all are finished, keeping the queue within its limit.

    Args:
        engine: nobody else steps it meanwhile.
        requests: any number, of different ids.
        finished: called whenever one has ended.

    Returns:
        Deltas by request id, in the order of `requests`.

    Raises:
        RequestError: a request is impossible; nothing was computed then. Or nothing may come next in one.
        EngineError: the model failed on one.
    """
    for request in requests:
        engine.validate(request.prompt_token_ids, request.params)
    deltas: dict[str, list[Delta]] = {request.request_id: [] for request in requests}
    remaining = {request.request_id: request.params.n for request in requests}
    todo = iter(requests)
    try:
        upcoming = next(todo, None)
        while upcoming is not None or engine.has_unfinished:
            while upcoming is not None and engine.scheduler.has_room:
                engine.add_request(upcoming)
                upcoming = next(todo, None)
            for delta in engine.step():
                if delta.error is not None:
                    raise delta.error
                deltas[delta.request_id].append(delta)
                remaining[delta.request_id] -= delta.finish_reason is not None
                if finished is not None and not remaining[delta.request_id] and delta.finish_reason is not None:
                    finished()
            if engine.idle:
                sleep(0.001)
    finally:  # an error or Ctrl-C must not leave requests behind
        for request_id in deltas:
            engine.abort(request_id)
    return deltas


def collect(deltas: Sequence[Delta], n: int) -> tuple[CompletionOutput, ...]:
    """A request's deltas as its completions."""
    outputs = []
    for index in range(n):
        parts = [d for d in deltas if d.index == index]
        reason = parts[-1].finish_reason
        assert reason is not None, "the request has ended"
        logprobs: list[TokenLogprob] | None = None
        if parts[0].logprobs is not None:
            logprobs = [x for d in parts for x in d.logprobs or ()]
        outputs.append(
            CompletionOutput(
                text="".join(d.text for d in parts),
                token_ids=tuple(t for d in parts for t in d.token_ids),
                finish_reason=reason,
                logprobs=None if logprobs is None else tuple(logprobs),
                cumulative_logprob=None if logprobs is None else sum(x.logprob for x in logprobs),
                stop_reason=parts[-1].stop_reason,
            )
        )
    return tuple(outputs)
