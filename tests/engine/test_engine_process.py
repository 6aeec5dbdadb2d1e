"""An engine in a process of its own: the same answers, and a service that comes back whatever kills it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from tiny_engine import byte_tokenizer, greedy_loop, random_prompts, tiny_model

from lmworks.core.errors import (
    CheckpointError,
    EngineError,
    EngineOverloadedError,
    EngineUnavailableError,
    RequestError,
    RequestTooLongError,
)
from lmworks.core.sampling import SamplingParams
from lmworks.core.telemetry import subscribed
from lmworks.engine import AsyncLLM, EngineConfig
from lmworks.engine.process.child_process import Restarts
from lmworks.engine.process.exchange import Abort, Refused
from lmworks.engine.process.wire import Channel
from lmworks.models.hub import save_pretrained

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
QUICK = Restarts(backoff_seconds=0.05, early_seconds=0.0, hang_seconds=3.0, poll_seconds=0.1)
CONFIG = EngineConfig(dtype="float32", block_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_num_queued_reqs=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_pretrained(tiny_model(), folder)
    byte_tokenizer().save(folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    llm = AsyncLLM.spawn(folder, CONFIG, restarts=QUICK)
    llm.wait_until_ready(60)
    yield llm
    llm.shutdown()


async def collect(llm, prompt, params=GREEDY, **options):
    return [delta async for delta in llm.generate(prompt, params, **options)]


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_the_parent_needs_no_torch():
    code = (
        "import sys; from lmworks.engine import AsyncLLM; import lmworks.server.app, lmworks.server.serve;"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or None)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_answers_are_those_of_the_model(llm):
    prompts = random_prompts([3, 40, 9, 17, 25, 5])
    events = []

    async def main():
        return await asyncio.gather(*(collect(llm, p) for p in prompts))

    with subscribed(events.append):
        answers = asyncio.run(main())
    for prompt, deltas in zip(prompts, answers, strict=True):
        assert [t for d in deltas for t in d.token_ids] == greedy_loop(tiny_model(), prompt, 8)
        assert deltas[-1].finish_reason == "length"
    assert [e.name for e in events] == ["engine.request_finished"] * 6
    assert llm.stats().requests_finished_total["length"] >= 6
    assert llm.info.max_model_len == 128
    assert llm.tokenizer.vocab_size == llm.info.vocab_size


def test_parameters_and_logprobs_travel(llm, folder):
    params = SamplingParams(
        n=2, temperature=0.7, seed=2**63, max_tokens=3, logprobs=2, logit_bias={7: 1.5}, stop=("\ud800", "é"),
        ignore_eos=True,
    )  # fmt: skip
    other = AsyncLLM(folder, config=CONFIG)
    ours, theirs = (asyncio.run(collect(x, [5, 6], params, request_id="r")) for x in (llm, other))
    other.shutdown()
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))
    assert isinstance(ours[0].logprobs[0].top, tuple)


def test_refusals_keep_their_class(llm):
    async def main():
        for prompt, params, error in (
            ([], GREEDY, RequestError),
            ([5] * 500, GREEDY, RequestTooLongError),
            ([99999], GREEDY, RequestError),
            ([2**70], GREEDY, RequestError),
        ):
            with pytest.raises(error):
                await collect(llm, prompt, params)
        with pytest.raises(RequestError, match="cannot embed"):
            await llm.call("embed", documents=[[5]])
        results = await asyncio.gather(*(collect(llm, [5] * 9) for _ in range(30)), return_exceptions=True)
        refused = [r for r in results if isinstance(r, EngineOverloadedError)]
        assert refused
        assert all(r.retry_after_seconds >= 1 for r in refused)
        assert all(isinstance(r, EngineOverloadedError) or len(r) == 8 for r in results)

    asyncio.run(main())


def test_errors_arrive_whole():
    error = EngineOverloadedError("too many wait", "Come back", retry_after_seconds=7)
    ours, theirs = map(Channel, socket.socketpair())
    ours.send([Refused("r", error)])
    [refused] = next(theirs.receive())
    assert (type(refused.error), refused.error.retry_after_seconds) == (EngineOverloadedError, 7)
    assert str(refused.error) == str(error)
    ours.close()
    assert list(theirs.receive()) == []
    theirs.close()


def test_sending_never_waits_and_keeps_the_order():
    ours, theirs = map(Channel, socket.socketpair())
    sent = [[Abort("x" * 100_000 + str(i))] for i in range(30)]
    for frame in sent:  # nobody reads: three megabytes are more than the socket holds
        ours.send(frame)
    received = theirs.receive()
    assert [list(next(received)) for _ in sent] == sent
    ours.close()
    theirs.close()


def test_leaving_frees_the_cache(llm):
    async def main():
        stream = llm.generate([5] * 20, ENDLESS)
        await anext(stream)
        await stream.aclose()

    before = llm.stats().requests_finished_total.get("abort", 0)
    asyncio.run(main())
    until(lambda: llm.stats().requests_finished_total.get("abort") == before + 1)
    assert llm.stats().kv_cache_usage == 0


def test_weights_are_updated_in_place(llm, folder, tmp_path):
    save_pretrained(tiny_model(seed=1), tmp_path)

    async def main():
        with pytest.raises(CheckpointError):
            await llm.call("update_weights", path=str(tmp_path / "nothing"))
        await llm.call("update_weights", path=str(tmp_path))
        changed = await collect(llm, [5, 6, 7])
        await llm.call("update_weights", path=str(folder))
        return changed, await collect(llm, [5, 6, 7])

    for seed, deltas in zip((1, 0), asyncio.run(main()), strict=True):
        assert [t for d in deltas for t in d.token_ids] == greedy_loop(tiny_model(seed=seed), [5, 6, 7], 8)


def test_a_killed_engine_ends_its_streams_and_comes_back(llm):
    async def main():
        first = llm.generate([5] * 20, ENDLESS)
        await anext(first)
        call = asyncio.create_task(collect(llm, [6] * 3, ENDLESS))
        await asyncio.sleep(0)
        pid = llm.pid
        os.kill(pid, signal.SIGKILL)
        for waiting in (collect_rest(first), call):
            with pytest.raises(EngineUnavailableError, match="SIGKILL"):
                await asyncio.wait_for(waiting, 10)
        with pytest.raises(EngineUnavailableError):
            await collect(llm, [5])
        assert llm.state == "restarting"
        assert llm.stats().num_requests_running == 0
        await asyncio.to_thread(llm.wait_until_ready, 60)
        assert llm.pid != pid
        return await collect(llm, [5, 6, 7])

    deltas = asyncio.run(main())
    assert [t for d in deltas for t in d.token_ids] == greedy_loop(tiny_model(), [5, 6, 7], 8)


async def collect_rest(stream):
    return [delta async for delta in stream]


def test_a_hung_engine_is_killed_and_comes_back(llm):
    llm.wait_until_ready(60)
    pid = llm.pid
    time.sleep(QUICK.hang_seconds + 0.5)  # an idle engine is none that hangs
    assert llm.pid == pid

    async def main():
        stream = llm.generate([5], ENDLESS)
        await anext(stream)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailableError, match="hung"):
            await asyncio.wait_for(collect_rest(stream), 20)

    asyncio.run(main())
    assert gone(pid)
    llm.wait_until_ready(60)
    assert len(asyncio.run(collect(llm, [5]))) == 8


def test_a_model_that_cannot_be_loaded_says_why_at_once(tmp_path):
    llm = AsyncLLM.spawn(tmp_path / "none", CONFIG)
    with pytest.raises(CheckpointError, match="none"):
        llm.wait_until_ready(60)
    assert llm.state == "failed"
    with pytest.raises(CheckpointError):
        asyncio.run(collect(llm, [5]))
    llm.shutdown()


def test_a_process_that_never_lives_is_given_up(folder):
    llm = AsyncLLM.spawn(folder, CONFIG, restarts=Restarts(backoff_seconds=0.01, max_early_deaths=2))
    with pytest.raises(EngineUnavailableError, match="loaded"):
        asyncio.run(collect(llm, [5]))
    killed = set()
    deadline = time.monotonic() + 60
    while llm.state != "failed":
        assert time.monotonic() < deadline
        pid = llm.pid
        if pid is not None and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    assert len(killed) == 3
    with pytest.raises(EngineError, match="SIGKILL while it was loading"):
        llm.wait_until_ready(1)
    llm.shutdown()


@pytest.mark.parametrize("loaded", [False, True])
def test_the_engine_dies_with_its_parent(folder, loaded):
    code = (
        "import sys, time; from lmworks.engine import AsyncLLM\n"
        "llm = AsyncLLM.spawn(sys.argv[1])\n"
        "if sys.argv[2] == 'True': llm.wait_until_ready(60)\n"
        "while llm.pid is None: time.sleep(0.01)\n"
        "print(llm.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder), str(loaded)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGINT)  # a terminal's Ctrl-C goes to both; the child leaves it to the parent
        assert not gone(pid)
        parent.kill()
    until(lambda: gone(pid), 10)


def test_shutdown_ends_open_streams_and_the_process(folder):
    llm = AsyncLLM.spawn(folder, CONFIG, restarts=QUICK)
    llm.wait_until_ready(60)
    pid = llm.pid

    async def main():
        ends = [asyncio.create_task(collect(llm, [5], ENDLESS)) for _ in range(8)]  # of which four run at a time
        await asyncio.sleep(0)
        await asyncio.to_thread(llm.shutdown)
        return await asyncio.gather(*ends, return_exceptions=True)

    ended = asyncio.run(main())
    assert all(isinstance(end, EngineError) and "shut down" in str(end) for end in ended[4:])
    llm.shutdown()
    assert gone(pid)
    assert llm.state == "stopped"


@pytest.mark.slow
def test_random_deaths_under_load_lose_no_stream(folder):
    """Every stream ends with an answer or a clean error, and the service comes back each time."""
    llm, dice = AsyncLLM.spawn(folder, CONFIG, restarts=QUICK), random.Random(0)
    llm.wait_until_ready(60)
    prompt, whole = [5, 6, 7], greedy_loop(tiny_model(), [5, 6, 7], 8)
    answered = failed = 0

    async def client(stop):
        nonlocal answered, failed
        while not stop.is_set():
            try:
                deltas = await asyncio.wait_for(collect(llm, prompt), 30)
            except EngineUnavailableError:
                failed += 1
                await asyncio.sleep(0.02)
            else:
                assert [t for d in deltas for t in d.token_ids] == whole
                answered += 1

    async def main():
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(stop)) for _ in range(6)]
        for _ in range(5):
            await asyncio.to_thread(llm.wait_until_ready, 60)
            before = answered
            while answered < before + 5:
                await asyncio.sleep(0.01)
            await asyncio.sleep(dice.random() * 0.1)
            os.kill(llm.pid, signal.SIGKILL)
        stop.set()
        await asyncio.gather(*clients)

    asyncio.run(main())
    assert answered >= 25
    assert failed >= 5
    llm.shutdown()
    assert not llm._streams
