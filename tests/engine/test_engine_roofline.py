"""The share of the memory limit, and how steps are counted."""

from __future__ import annotations

import asyncio

from tiny_engine import byte_tokenizer, tiny_model

from lmworks.core.sampling import SamplingParams
from lmworks.engine import AsyncLLM, EngineConfig
from lmworks.engine.execution.roofline import Roofline


def test_a_step_that_takes_twice_the_least_reaches_a_half():
    roofline = Roofline(weight_bytes=800, cache_bytes=1000, probe=lambda: 1000.0)
    roofline.add(2.0)
    assert roofline.ratio(0.2) == 0  # of a limit that nobody has measured
    roofline.measure()
    assert roofline.ratio(0.2) == 0
    for _ in range(3):
        roofline.add(2.0)
    assert roofline.ratio(0.2) == 0.5  # (800 + 0.2 * 1000) bytes at 1000 a second
    assert roofline.ratio(0.2) == 0


def test_steps_are_counted_by_the_tokens_they_computed():
    llm = AsyncLLM(tiny_model(), byte_tokenizer(), EngineConfig(max_num_batched_tokens=64, max_num_seqs=4))
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)

    async def main():
        return [delta async for delta in llm.generate([7] * 20, params)]

    asyncio.run(main())
    llm.shutdown()
    stats = llm.stats()
    assert stats.iteration_tokens_sum == 25
    assert sum(stats.iteration_tokens) == 5
    assert stats.iteration_tokens[0] == 4  # one token each
    assert stats.iteration_tokens[5] == 1  # 20 of the prompt and the first: at most 32
