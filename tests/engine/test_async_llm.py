"""Many streams over one engine thread: the same answers, clean ends for those who leave, and news of failures."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from tiny_engine import byte_tokenizer, greedy_loop, random_prompts, tiny_model

from lmworks.core.errors import EngineError, EngineOverloadedError, RequestError, RequestTooLongError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import AsyncLLM, EngineConfig

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)


@pytest.fixture
def make():
    made = []

    def build(**config) -> AsyncLLM:
        config = EngineConfig(**{"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, **config})
        made.append(AsyncLLM(tiny_model(), byte_tokenizer(), config))
        return made[-1]

    yield build
    for llm in made:
        llm.shutdown()
        assert not llm._home.thread.is_alive()
        engine = llm._home.loop.engine
        engine.check_integrity()
        assert engine.blocks.num_free_blocks == engine.blocks.num_blocks
        assert not llm._streams


async def collect(llm, prompt, params=GREEDY, request_id=None):
    return [delta async for delta in llm.generate(prompt, params, request_id)]


async def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        await asyncio.sleep(0.005)


def test_concurrent_streams_get_their_own_answers(make):
    prompts = random_prompts([3, 40, 9, 17, 25, 5])

    async def main(llm):
        return await asyncio.gather(*(collect(llm, p) for p in prompts))

    answers = asyncio.run(main(make()))
    for prompt, deltas in zip(prompts, answers, strict=True):
        assert [t for d in deltas for t in d.token_ids] == greedy_loop(tiny_model(), prompt, 8)
        assert [d.finish_reason for d in deltas] == [None] * 7 + ["length"]
        assert [d.num_generated_tokens for d in deltas] == list(range(1, 9))
        assert {d.num_prompt_tokens for d in deltas} == {len(prompt)}


def test_all_completions_of_a_request_arrive(make):
    deltas = asyncio.run(collect(make(), [5, 6], SamplingParams(n=3, max_tokens=4, seed=1, ignore_eos=True)))
    assert sorted(d.index for d in deltas if d.finish_reason) == [0, 1, 2]
    assert len(deltas) == 12


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_client_that_leaves_frees_its_blocks(make, how):
    async def main(llm):
        if how == "close":
            stream = llm.generate([5] * 20, ENDLESS)
            await anext(stream)
            await stream.aclose()
        else:
            task = asyncio.create_task(collect(llm, [5] * 20, ENDLESS))
            await until(lambda: llm.stats().num_requests_running)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: llm.stats().requests_finished_total == {"abort": 1})
        assert llm.stats().kv_cache_usage == 0
        assert len(await collect(llm, [5])) == 8

    asyncio.run(main(make()))


def test_abort_ends_the_stream(make):
    async def main(llm):
        task = asyncio.create_task(collect(llm, [5] * 20, ENDLESS, "mine"))
        await until(lambda: llm.stats().num_requests_running)
        llm.abort("mine")
        llm.abort("unknown")
        return await task

    assert asyncio.run(main(make()))[-1].finish_reason == "abort"


def test_bad_requests_fail_alone(make):
    async def main(llm):
        good = asyncio.create_task(collect(llm, [5] * 9))
        for prompt, error in (([], RequestError), ([5] * 500, RequestTooLongError), ([99999], RequestError)):
            with pytest.raises(error):
                await collect(llm, prompt)
        twin = asyncio.create_task(collect(llm, [5], ENDLESS, "twin"))
        await until(lambda: llm.stats().num_requests_running)
        with pytest.raises(RequestError, match="in use"):
            await collect(llm, [5], GREEDY, "twin")
        llm.abort("twin")
        await twin
        return await good

    assert len(asyncio.run(main(make()))) == 8


def test_overload_is_refused_and_passes(make):
    async def main(llm):
        results = await asyncio.gather(*(collect(llm, [5] * 9) for _ in range(12)), return_exceptions=True)
        assert any(isinstance(r, EngineOverloadedError) for r in results)
        assert all(isinstance(r, EngineOverloadedError) or len(r) == 8 for r in results)
        return await collect(llm, [5])

    assert len(asyncio.run(main(make(max_num_seqs=1, max_num_queued_reqs=2)))) == 8


def test_an_engine_failure_reaches_everyone_and_later_callers(make):
    llm = make()

    def broken(chunks):
        raise RuntimeError("out of memory")

    async def main():
        first = llm.generate([5], ENDLESS)
        await anext(first)
        llm._home.loop.engine.runner.run = broken
        results = await asyncio.gather(anext(first), *(collect(llm, [6]) for _ in range(3)), return_exceptions=True)
        while not isinstance(results[0], EngineError):
            results[0] = (await asyncio.gather(anext(first), return_exceptions=True))[0]
        assert all("out of memory" in str(r) for r in results)
        with pytest.raises(EngineError, match="out of memory"):
            await collect(llm, [5])

    asyncio.run(main())
    assert not llm.alive


def test_an_engine_that_is_gone_keeps_nothing_of_those_it_refuses(make):
    llm = make()

    async def refusals():
        for _ in range(5):
            with pytest.raises(EngineError, match=r"shut down\. Start it again\."):
                await collect(llm, [5, 6])

    llm.shutdown()
    asyncio.run(refusals())
    assert llm.error.__traceback__ is None


def test_shutdown_ends_open_streams_and_can_be_repeated(make):
    async def main(llm):
        task = asyncio.create_task(collect(llm, [5], ENDLESS))
        await until(lambda: llm.stats().num_requests_running)
        await asyncio.to_thread(llm.shutdown)
        llm.shutdown()
        with pytest.raises(EngineError, match="shut down"):
            await task
        with pytest.raises(EngineError, match="shut down"):
            await collect(llm, [5])

    asyncio.run(main(make()))


def test_an_event_loop_that_is_gone_does_not_stop_the_engine(make):
    llm = make()

    async def start():
        stream = llm.generate([5], ENDLESS)
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(start())
    loop.close()
    assert len(asyncio.run(collect(llm, [6]))) == 8
    llm.abort(stream.ag_frame.f_locals["request_id"])


def test_random_traffic_leaks_nothing(make):
    """Arrivals, departures at every phase, several completions, a cache too small for all."""
    llm, dice = make(max_model_len=60, num_kv_blocks=18), random.Random(0)

    async def client(i):
        await asyncio.sleep(dice.random() * 0.3)
        params = SamplingParams(n=dice.choice([1, 1, 3]), max_tokens=dice.randint(1, 30), seed=i, ignore_eos=True)
        stream = llm.generate([5 + i % 3] * dice.randint(1, 40), params, f"r{i}")
        leave_after, seen = dice.choice([0, 1, 3, 1000]), 0
        try:
            async for _ in stream:
                seen += 1
                if seen > leave_after:
                    if dice.random() < 0.5:
                        llm.abort(f"r{i}")
                    else:
                        break
        finally:
            await stream.aclose()

    async def main():
        await asyncio.gather(*(client(i) for i in range(40)))
        await until(lambda: llm.stats().kv_cache_usage == 0 and not llm.stats().num_requests_waiting)

    asyncio.run(main())
    assert sum(llm.stats().requests_finished_total.values()) >= 40
