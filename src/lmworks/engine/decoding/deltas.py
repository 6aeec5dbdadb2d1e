"""What a step added to a completion, put together from its sequence. Knows no logits."""

from __future__ import annotations

from lmworks.core.errors import EngineError
from lmworks.core.generation import TokenLogprob
from lmworks.engine.outputs import Delta
from lmworks.engine.scheduling.sequence import Sequence


def delta_of(
    sequence: Sequence,
    text: str,
    token_ids: tuple[int, ...],
    logprobs: tuple[TokenLogprob, ...] | None,
    error: EngineError | None = None,
) -> Delta:
    """The sequence's newest delta; `token_ids` are its last tokens already."""
    scores = sequence.prompt_logprobs
    if sequence.num_output_tokens > len(token_ids) or sequence.wants_prompt_logprobs:
        scores = None  # not the first, or not complete
    return Delta(
        request_id=sequence.request_id,
        index=sequence.index,
        text=text,
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=sequence.finish_reason,
        num_prompt_tokens=sequence.num_request_tokens,
        num_generated_tokens=sequence.num_output_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        error=error,
        prompt_logprobs=None if scores is None else tuple(scores),
        stop_reason=sequence.stop_reason,
    )
