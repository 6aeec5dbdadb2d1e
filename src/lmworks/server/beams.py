"""Beam search over a served engine: each step asks for what may follow every prefix. Knows no route.

The engine's prefix cache makes prefixes that are asked for again cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from lmworks.core.errors import EngineError
from lmworks.core.sampling import BeamSearchParams
from lmworks.engine.decoding.beam_search import Beam, BeamSearch, NextTokens
from lmworks.engine.outputs import Delta
from lmworks.server.served_model import ServedModel
from lmworks.tokenization import StreamingDetokenizer


async def search_beams(
    model: ServedModel, prompt: Sequence[int], params: BeamSearchParams, request_id: str, cache_salt: str
) -> list[Delta]:
    """The likeliest completions of one prompt, best first, each as one delta.

    Raises:
        EngineError: the engine refused a step, or failed.
    """
    tokenizer = model.llm.tokenizer
    search = BeamSearch(params, tokenizer.eos_token_ids, model.llm.max_model_len - len(prompt))
    step = 0
    while prefixes := search.prefixes:

        async def follow(number: int, prefix: tuple[int, ...], step: int = step) -> NextTokens:
            one = f"{request_id}-{step}-{number}"
            told: NextTokens = ()
            deltas = model.llm.generate(
                [*prompt, *prefix], search.sampling_params, one, cache_salt=cache_salt, adapter=model.adapter
            )
            async with aclosing(deltas):
                async for delta in deltas:
                    if delta.finish_reason == "abort":
                        raise delta.error or EngineError("the engine stopped before the answer was complete")
                    if delta.logprobs:
                        told = delta.logprobs[0].top
            return told

        steps = [asyncio.create_task(follow(number, prefix)) for number, prefix in enumerate(prefixes)]
        try:
            search.advance(await asyncio.gather(*steps))
        finally:
            for task in steps:
                task.cancel()
        step += 1
    continues = prompt[-1] not in tokenizer.special_token_ids
    return [
        _delta(beam, index, request_id, len(prompt), StreamingDetokenizer(tokenizer, continues=continues))
        for index, beam in enumerate(search.beams)
    ]


def _delta(beam: Beam, index: int, request_id: str, prompt_tokens: int, text: StreamingDetokenizer) -> Delta:
    """A beam as the engine tells of a completion; the end-of-sequence token has no text."""
    shown = beam.token_ids[:-1] if beam.finish_reason == "stop" else beam.token_ids
    return Delta(
        request_id=request_id,
        index=index,
        text=text.add(shown) + text.finish(),
        token_ids=beam.token_ids,
        logprobs=None,
        finish_reason=beam.finish_reason,
        num_prompt_tokens=prompt_tokens,
        num_generated_tokens=len(beam.token_ids),
    )
