"""The scheduler and the block manager, without a model: budgets, fairness, preemption."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny_scheduler import scheduler, sequence, step

from lmworks.core.errors import ConfigError, EngineOverloadedError
from lmworks.core.sampling import SamplingParams
from lmworks.engine.config import EngineConfig
from lmworks.engine.request import Request
from lmworks.engine.scheduling.block_manager import BlockManager
from lmworks.engine.scheduling.sequence import Sequence, Status


def test_no_torch_is_needed_to_schedule():
    code = "import sys, lmworks.engine.scheduling.scheduler; sys.exit('torch' in sys.modules)"
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
    for x in (first, big, small):
        s.add([x])
    scheduled = [x for _ in range(3) for x, _ in step(s)]
    assert big not in scheduled
    assert small not in scheduled


def test_the_youngest_is_preempted_and_comes_back_first():
    s = scheduler(num_blocks=6, prefix=False)
    old, young, waiting = (sequence(range(i * 100, i * 100 + 8), 12) for i in range(3))
    for x in (old, young, waiting):
        s.add([x])
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


def test_refusal_names_the_limit_and_when_to_come_back():
    s = scheduler(max_num_queued_tokens=10, max_num_queued_reqs=3)
    s.load.step(100, 2.0)
    s.load.finished(50)
    for _ in range(2):
        s.add([sequence(6)])
    with pytest.raises(EngineOverloadedError, match="max_num_queued_tokens is 10") as caught:
        s.add([sequence(1)])
    assert caught.value.retry_after_seconds == 3, "12 tokens and two answers of 50, at 50 a second"
    assert s.rejections == {"max_num_queued_tokens": 1}
    while step(s):
        pass
    assert s.has_room
    assert s.waiting.num_tokens == s.waiting.num_requests == 0


def test_a_request_counts_once_however_many_completions():
    s = scheduler(max_num_queued_reqs=2)
    s.add([sequence(2) for _ in range(9)])
    s.add([sequence(2)])
    assert not s.has_room


def test_lower_priorities_go_first_and_take_places():
    s = scheduler(max_num_seqs=2, scheduling_policy="priority")
    low = [sequence(range(i, i + 4), priority=5) for i in (0, 10)]
    high = sequence(range(20, 24), priority=-1)
    for x in low:
        s.add([x])
    step(s)
    s.add([sequence(range(30, 34), priority=9)])
    s.add([high])
    step(s)
    assert high.status is Status.RUNNING
    assert [x.num_preemptions for x in low] == [0, 1], "the one that loses the least, or came last"
    step(s)
    assert low[1] is s.waiting[0]
    while step(s):
        pass
    assert all(x.finished for x in low)


def test_priority_is_nothing_to_first_come_first_served():
    s = scheduler(max_num_seqs=1)
    first, second = sequence(4, priority=5), sequence(4, priority=-5)
    s.add([first])
    s.add([second])
    step(s)
    assert first.status is Status.RUNNING
    assert s.running == [first]


def test_nobody_is_preempted_in_vain():
    s = scheduler(num_blocks=8, scheduling_policy="priority")
    low, same = sequence(8, 20, priority=5), sequence(range(50, 66), 20, priority=0)
    s.add([low])
    s.add([same])
    step(s)
    step(s)
    s.add([sequence(range(100, 120), priority=0)])
    step(s)
    assert low.num_preemptions == 0, "its blocks would not be enough"


def test_the_least_work_is_lost_and_newcomers_lose_theirs_before_it_is_lost_twice():
    s = scheduler(num_blocks=9, prefix=False, max_num_batched_tokens=64)
    old, young = sequence(range(100, 104), 40), sequence(range(200, 220), 12)
    s.add([old])
    s.add([young])
    while not s.num_preemptions:
        step(s)
    assert old.num_preemptions == 1, "the older one had computed less"
    while not young.finished:
        step(s)
    late = sequence(range(300, 320), 40)
    s.add([late])
    while s.num_preemptions == 1:
        step(s)
    assert late.num_computed_tokens + late.lost_tokens > old.num_computed_tokens - 8
    assert (old.num_preemptions, late.num_preemptions) == (1, 1)


def test_what_was_lost_before_counts():
    s = scheduler()
    older, younger = sequence(6), sequence(range(10, 14))
    for x in (older, younger):
        s.add([x])
    step(s)
    assert s._victim(s.running) is younger
    younger.lost_tokens = 10
    assert s._victim(s.running) is older


def test_a_huge_prompt_leaves_half_of_each_step_while_others_have_something_to_compute():
    s = scheduler(num_blocks=64)
    huge, small = sequence(range(100, 200)), sequence(range(8))
    s.add([huge])
    assert step(s) == [(huge, 16)], "nobody else is there"
    s.add([small])
    assert step(s) == [(huge, 8), (small, 8)]
    assert step(s) == [(small, 1), (huge, 15)]


def test_a_threshold_bounds_every_prompt():
    s = scheduler(num_blocks=64, long_prefill_token_threshold=5)
    long, small = sequence(range(100, 120)), sequence(range(8))
    s.add([long])
    s.add([small])
    assert step(s) == [(long, 5), (small, 5)]


def test_who_cannot_run_yet_is_passed_over():
    s = scheduler()
    stuck, other = sequence(4), sequence(range(10, 14))
    stuck.waits_for_constraint = True
    s.add([stuck])
    assert step(s) == []
    s.add([other])
    assert step(s) == [(other, 4)]
    stuck.waits_for_constraint = False
    assert step(s) == [(other, 1), (stuck, 4)]


def test_room_is_left_for_those_who_run():
    s = scheduler(num_blocks=10, watermark=0.2)
    first, second = sequence(range(100, 116)), sequence(range(20))
    s.add([first])
    s.add([second])
    step(s)
    step(s)
    assert second.status is Status.WAITING, "five of six blocks would leave one"


def test_a_prompt_is_computed_once_for_all_completions():
    s = scheduler(num_blocks=32, max_num_seqs=3)
    completions = [sequence(7, 5) for _ in range(4)]
    s.add(completions)
    assert step(s) == [(completions[0], 7)]
    assert [x.status for x in completions] == [Status.RUNNING] * 3 + [Status.WAITING]
    assert step(s) == [(x, 1) for x in completions[:3]]
    assert len(s.block_manager.take_copies()) == 2
    while step(s):
        s.block_manager.take_copies()
    assert all(x.finished for x in completions)
    assert completions[3].num_cached_tokens == 4, "there was no place for it, so it found what is cached"


def test_when_the_first_completion_is_aborted_the_others_compute_the_prompt():
    s = scheduler()
    completions = [sequence(7, 2) for _ in range(3)]
    s.add(completions)
    s.finish(completions[0], "abort")
    assert step(s) == [(completions[1], 7), (completions[2], 7)]


def test_guesses_are_cut_to_the_budget_and_take_nobodys_blocks():
    s = scheduler(num_blocks=8, max_num_batched_tokens=6, max_num_seqs=4)
    first, second = sequence(range(3), 40), sequence(range(50, 53), 40)
    for x in (first, second):
        s.add([x])
        step(s)
    for x in (first, second):
        x.draft_token_ids[:] = [1, 2, 3]
    chunks = s.schedule()
    assert [(c.length, c.num_logits) for c in chunks] == [(4, 4), (2, 2)]
    assert chunks[0].token_ids == [7, 1, 2, 3]
    assert second.draft_token_ids == [1]
    s = scheduler(num_blocks=3, max_num_seqs=4)
    first = sequence(range(8), 4)
    s.add([first])
    step(s)
    first.draft_token_ids[:] = [1, 2, 3, 4]
    assert [c.length for c in s.schedule()] == [1]


def test_guesses_leave_a_block_for_everybody_who_runs():
    s = scheduler(num_blocks=5, block_size=2)
    first, second = sequence(2, 9), sequence(range(10, 12), 9)
    for x in (first, second):
        s.add([x])
    step(s)
    first.draft_token_ids[:] = [1, 2, 3]
    assert [c.length for c in s.schedule()] == [1, 1]


def test_who_is_preempted_forgets_its_guesses():
    s = scheduler()
    x = sequence(3)
    s.add([x])
    step(s)
    x.draft_token_ids[:] = [1, 2]
    s.preempt_all()
    assert step(s) == [(x, 4)]


def test_new_weights_find_nothing_of_the_old_ones():
    s = scheduler()
    running, waiting = sequence(9), sequence(9)
    s.add([running])
    step(s)
    s.block_manager.has_room_for(waiting)  # it has looked, and knows its digests
    waiting.waits_for_constraint = True
    s.add([waiting])
    s.renew_weights()
    assert step(s) == [(running, 10)]
    waiting.waits_for_constraint = False
    assert (waiting, 1) in step(s), "what the new ones computed is found"
    assert waiting.num_cached_tokens == 8


def test_prompts_that_are_scored_take_few_rows_a_step():
    s = scheduler(num_blocks=512, max_num_batched_tokens=1024)
    prompt = tuple(range(700))
    scored = Sequence(Request("r", prompt, SamplingParams(prompt_logprobs=0)), 0, prompt, 4)
    other = sequence(range(1000, 1100))
    s.add([scored])
    s.add([other])
    assert [(c.length, c.num_logits) for c in s.schedule()] == [(256, 256)], "nothing is left for others to be scored"
