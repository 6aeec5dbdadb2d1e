"""Random traffic through the scheduler and the block manager, without a model: no lost block ever, and all ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tiny_scheduler import blocks_written, carry_out, scheduler, sequence

from lmworks.engine.scheduling.sequence import Sequence


class Traffic(RuleBasedStateMachine):
    """Any order of everything that can happen, and what must hold after each."""

    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        spare=st.integers(0, 32),
        budget=st.integers(4, 20),
        policy=st.sampled_from(["fcfs", "priority"]),
        prefix=st.booleans(),
        watermark=st.sampled_from([0.0, 0.1]),
        threshold=st.sampled_from([None, None, 3]),
    )
    def start(self, block_size, spare, budget, policy, prefix, watermark, threshold):
        self.scheduler = scheduler(
            (32 + spare) // block_size,
            block_size,
            prefix,
            max_num_batched_tokens=budget,
            scheduling_policy=policy,
            watermark=watermark,
            long_prefill_token_threshold=threshold,
        )
        self.live: list[Sequence] = []
        self.copies = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        max_tokens=st.integers(1, 12),
        n=st.sampled_from([1, 1, 1, 2, 6]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "a"]),
        stuck=st.sampled_from([False, False, False, True]),
    )
    def add(self, prompt, max_tokens, n, priority, salt, stuck):
        sequences = [sequence(prompt, max_tokens, priority=priority, cache_salt=salt) for _ in range(n)]
        for s in sequences:
            s.waits_for_constraint = stuck
        self.scheduler.add(sequences)
        self.live += sequences

    @rule(token=st.integers(0, 1), data=st.data())
    def step(self, token, data):
        for s in self.scheduler.running:
            if s.num_uncomputed_tokens == 1 and s.num_output_tokens:
                room = s.max_tokens - s.num_output_tokens - 1
                s.draft_token_ids[:] = data.draw(st.lists(st.integers(0, 1), max_size=min(room, 3)))
        self.take(self.scheduler.schedule(), token)

    def take(self, chunks, token):
        s = self.scheduler
        written = [b for c in chunks for b in blocks_written(c, s.block_manager.block_size)]
        assert len(written) == len(set(written)), "two write to one block"
        assert all(s.block_manager._references[b] == 1 for b in written), "a shared block is written"
        self.copies += len(s.block_manager.take_copies())
        carry_out(s, chunks, token)
        for x in self.live:
            x.draft_token_ids.clear()

    @rule(data=st.data())
    def abort(self, data):
        if unfinished := [x for x in self.live if not x.finished]:
            self.scheduler.finish(data.draw(st.sampled_from(unfinished)), "abort")

    @rule(data=st.data())
    def unstick(self, data):
        if stuck := [x for x in self.live if x.waits_for_constraint]:
            data.draw(st.sampled_from(stuck)).waits_for_constraint = False

    @rule()
    def renew_weights(self):
        self.scheduler.renew_weights()

    @invariant()
    def holds(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            waiting = [x for x in self.scheduler.waiting if x.leader is None]
            assert self.scheduler.waiting.num_requests == len(waiting)
            assert self.scheduler.waiting.num_tokens == sum(x.num_tokens for x in waiting)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for x in self.live:
            x.waits_for_constraint = False
        unfinished = [x for x in self.live if not x.finished]
        work = sum(x.num_tokens + x.max_tokens for x in unfinished)
        steps = 0
        while chunks := self.scheduler.schedule():
            self.take(chunks, 0)
            steps += 1
            assert steps <= 20 + 2 * work, "somebody starves"
        assert all(x.finished for x in self.live)
        assert self.scheduler.block_manager.num_free_blocks == self.scheduler.block_manager.num_blocks


Traffic.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_random_traffic_finishes_fairly_and_leaks_nothing = Traffic.TestCase
