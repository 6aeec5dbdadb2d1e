"""The scheduler and the block manager, without a model: budgets, fairness, preemption, and no lost block ever."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError, EngineOverloadedError
from lmworks.core.sampling import SamplingParams
from lmworks.engine.block_manager import BlockManager
from lmworks.engine.config import EngineConfig
from lmworks.engine.request import Request
from lmworks.engine.scheduler import Scheduler
from lmworks.engine.sequence import Sequence, Status


def sequence(tokens, max_tokens=8, name="r") -> Sequence:
    prompt = tuple(tokens) if not isinstance(tokens, int) else tuple(range(tokens))
    return Sequence(Request(name, prompt, SamplingParams()), 0, prompt, max_tokens)


def scheduler(num_blocks=16, block_size=4, prefix=True, **limits) -> Scheduler:
    config = EngineConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 16, **limits})
    return Scheduler(config, BlockManager(num_blocks, block_size, prefix))


def step(s: Scheduler, token: int = 7) -> list[tuple[Sequence, int]]:
    """Schedule, pretend to compute, pretend to sample."""
    chunks = s.schedule()
    assert sum(c.length for c in chunks) <= s.config.max_num_batched_tokens
    assert len(s.running) <= s.config.max_num_seqs
    ready = [c.sequence for c in chunks if c.num_logits]
    for chunk in chunks:
        s.computed(chunk.sequence, chunk.length)
    for done in ready:
        done.append(token)
        if done.num_output_tokens >= done.max_tokens:
            s.finish(done, "length")
    s.check_integrity()
    return [(c.sequence, c.length) for c in chunks]


def test_no_torch_is_needed_to_schedule():
    code = "import sys, lmworks.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_decoding_goes_first_and_a_long_prompt_fills_the_rest():
    s = scheduler()
    short, long = sequence(3), sequence(range(100, 140))
    s.add([short])
    step(s)
    s.add([long])
    assert step(s) == [(short, 1), (long, 15)]
    assert step(s) == [(short, 1), (long, 15)]
    assert step(s) == [(short, 1), (long, 10)]
    assert step(s) == [(short, 1), (long, 1)]


def test_first_come_first_served_even_when_a_later_one_would_fit():
    s = scheduler(num_blocks=10)
    first, big, small = sequence(20), sequence(range(50, 80)), sequence(range(90, 92))
    s.add([first, big, small])
    scheduled = [x for _ in range(3) for x, _ in step(s)]
    assert big not in scheduled
    assert small not in scheduled


def test_the_youngest_is_preempted_and_comes_back_first():
    s = scheduler(num_blocks=6, prefix=False)
    old, young, waiting = (sequence(range(i * 100, i * 100 + 8), 12) for i in range(3))
    s.add([old, young, waiting])
    for _ in range(10):
        step(s)
        if s.num_preemptions:
            break
    assert old.status is Status.RUNNING
    assert list(s.waiting) == [young, waiting]
    assert young.num_computed_tokens == 0
    assert young.num_output_tokens > 0
    while not young.finished:
        step(s)
    assert old.finished
    assert young.num_output_tokens == 12


def test_full_blocks_are_shared_and_the_last_token_is_always_computed():
    s = scheduler()
    a = sequence(8)
    s.add([a])
    step(s)
    b = sequence(8)
    s.add([b])
    chunks = step(s)
    assert chunks == [(a, 1), (b, 4)], "eight tokens are cached, but the last block must be computed for its logits"
    assert b.block_table[0] == a.block_table[0]
    assert b.num_cached_tokens == 4


def test_a_prefix_must_match_from_the_beginning():
    blocks = BlockManager(16, 4)
    a, b = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]), sequence([0, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.admit(a)
    a.num_computed_tokens = 9
    blocks.keep_computed(a, 9)
    blocks.free(a)
    assert blocks.admit(b)
    assert b.num_computed_tokens == 0


def test_least_recently_freed_prefix_is_evicted_first_and_its_end_before_its_beginning():
    blocks = BlockManager(4, 2)
    old, new = sequence([1, 2, 3, 4]), sequence([5, 6, 7, 8])
    for s in (old, new):
        assert blocks.admit(s)
        s.num_computed_tokens = 4
        blocks.keep_computed(s, 4)
    blocks.free(old)
    blocks.free(new)
    one = sequence([9])
    assert blocks.admit(one)
    again = sequence([1, 2, 3, 4, 0]), sequence([5, 6, 7, 8, 0])
    assert [len(blocks._find_prefix(s)) for s in again] == [1, 2]


def test_the_queue_has_an_end():
    s = scheduler(max_num_queued_reqs=2)
    s.add([sequence(2)])
    s.add([sequence(2)])
    with pytest.raises(EngineOverloadedError, match="max_num_queued_reqs is 2"):
        s.add([sequence(2)])


def test_every_running_sequence_must_get_a_token_a_step():
    with pytest.raises(ConfigError, match="below max_num_seqs"):
        EngineConfig.parse({"max_num_seqs": 8, "max_num_batched_tokens": 4})


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_random_traffic_finishes_and_leaks_nothing(data):
    block_size = data.draw(st.sampled_from([1, 2, 4]))
    num_blocks = data.draw(st.integers(32 // block_size, 64 // block_size))
    s = scheduler(
        num_blocks, block_size, data.draw(st.booleans()), max_num_batched_tokens=data.draw(st.integers(4, 20))
    )
    live: list[Sequence] = []
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "add", "step", "step", "abort", "preempt"]))
        if action == "add":
            prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=20))
            live.append(sequence(prompt, data.draw(st.integers(1, 12))))
            s.add([live[-1]])
        elif action == "step":
            step(s, data.draw(st.integers(0, 1)))
        elif action == "abort" and (unfinished := [x for x in live if not x.finished]):
            s.finish(data.draw(st.sampled_from(unfinished)), "abort")
        elif action == "preempt":
            s.preempt_all()
        s.check_integrity()
    for _ in range(1000):
        if not step(s):
            break
    assert all(x.finished for x in live)
    assert s.block_manager.num_free_blocks == num_blocks
