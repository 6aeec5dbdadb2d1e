"""Which tokens the next step computes: continuous batching in one file.

There is no prefill phase and no decode phase. Each running sequence has tokens that are not computed yet (a whole
prompt, or the one token just sampled), and a step computes up to `max_num_batched_tokens` of them:

1. sequences that decode get their one token each, and what was drafted for them as far as there is room;
2. what is left of the budget goes to running prompts, in chunks; one that is longer than a whole step leaves half of
   it to others that have something to compute;
3. then to waiting sequences in the order of priority and arrival, each admitted only if all its tokens fit in the
   cache. One that cannot run yet is passed over; one that does not fit lets nobody overtake it.

Sources for an encoder cannot be cut into chunks. They have a budget of the same size for themselves, and one that
exceeds it is the only one of its step. The completions of one prompt wait until the first of them has computed it.

When a decoding sequence finds no free block, another loses its blocks and waits again; its tokens are recomputed
later (preemption by recomputation, as in vLLM, arXiv:2309.06180). It is the one of the lowest priority whose loss is
the least, counting what it has lost before; one that was preempted is spared while there are newcomers. It stands
before all later arrivals in the queue. A step that preempts for room samples a token of the sequence that got it, so
every request ends. Knows no torch.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from itertools import count

from lmworks.core.errors import EngineOverloadedError
from lmworks.core.generation import FinishReason
from lmworks.engine.config import EngineConfig
from lmworks.engine.scheduling.block_manager import BlockManager
from lmworks.engine.scheduling.load_estimate import LoadEstimate
from lmworks.engine.scheduling.sequence import Sequence, Status
from lmworks.engine.scheduling.waiting_queue import WaitingQueue

MAX_PROMPT_LOGITS = 256
"""Rows of logits that one step computes for log-probabilities of prompts: a row is a whole vocabulary wide."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `length` uncomputed tokens of a sequence, those drafted for it included."""

    sequence: Sequence
    length: int
    num_logits: int
    """Logits are wanted after so many of the last tokens: none in the midst of a prompt, 1 at the sequence's end, one
    more for each drafted token, all where log-probabilities of the prompt are asked for."""

    @property
    def start(self) -> int:
        """Position of the first."""
        return self.sequence.num_computed_tokens

    @property
    def token_ids(self) -> list[int]:
        """The `length` tokens."""
        sequence, start = self.sequence, self.sequence.num_computed_tokens
        tokens = sequence.token_ids[start : start + self.length]
        return tokens + sequence.draft_token_ids if len(tokens) < self.length else tokens

    @property
    def encodes(self) -> bool:
        """Whether the sequence's source must be encoded first."""
        return self.start == 0 and bool(self.sequence.source_token_ids)

    @property
    def num_request_tokens(self) -> int:
        """How many of the tokens to be computed the user gave."""
        sequence = self.sequence
        if sequence.source_token_ids:
            return sequence.num_request_tokens if self.encodes else 0
        return max(0, min(self.length, sequence.num_prompt_tokens - self.start))


class Scheduler:
    """Holds every unfinished sequence, waiting or running.

    Args:
        config: limits.
        block_manager: of the cache.
    """

    def __init__(self, config: EngineConfig, block_manager: BlockManager) -> None:
        self.config, self.block_manager = config, block_manager
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        """In the order of priority and arrival."""
        self.load = LoadEstimate()
        self.num_preemptions = 0
        self.rejections: Counter[str] = Counter()
        """Requests that were refused, by the limit."""
        self._arrivals = count()
        self._watermark = int(config.watermark * block_manager.num_blocks)

    @property
    def has_room(self) -> bool:
        """Whether another request may be added."""
        return self._exceeded() is None

    def add(self, sequences: list[Sequence]) -> None:
        """Queue a request's sequences.

        Raises:
            EngineOverloadedError: too many requests or tokens are waiting.
        """
        if (limit := self._exceeded()) is not None:
            self.rejections[limit] += 1
            queue = self.waiting
            raise EngineOverloadedError(
                f"{queue.num_requests} requests with {queue.num_tokens} tokens are waiting "
                f"and {limit} is {getattr(self.config, limit)}",
                f"Retry later, or raise {limit}",
                retry_after_seconds=self.load.seconds_for(queue.num_tokens, queue.num_requests),
            )
        leader, followers = sequences[0], tuple(sequences[1:])
        priority = leader.request.priority if self.config.scheduling_policy == "priority" else 0
        leader.followers = followers
        for sequence in sequences:
            sequence.order = priority, next(self._arrivals)
            sequence.leader = leader if sequence is not leader else None
            self.waiting.add(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose the tokens of the next step, decoding sequences first; empty when nothing can be computed now."""
        if self.waiting and self.config.scheduling_policy == "priority":
            self._make_way()
        before = self.num_preemptions
        decoding: list[Sequence] = []
        prompts: list[Sequence] = []
        for sequence in self.running:
            (decoding if sequence.num_uncomputed_tokens == 1 else prompts).append(sequence)
        for sequence in decoding:
            while sequence.status is Status.RUNNING and not self.block_manager.grow(sequence):
                self._preempt(self._victim(self.running))
        if self.num_preemptions > before:
            decoding = [s for s in decoding if s.status is Status.RUNNING]
            prompts = [s for s in prompts if s.status is Status.RUNNING]
        budget = self.config.max_num_batched_tokens - len(decoding)
        chunks = []
        for sequence in decoding:
            drafts = self._fit_drafts(sequence, budget) if sequence.draft_token_ids else 0
            budget -= drafts
            chunks.append(Chunk(sequence, 1 + drafts, drafts + _num_logits(sequence, 1)))
        admits = bool(self.waiting) and self.num_preemptions == before  # who had to preempt has no room for others
        if prompts or admits:
            chunks += self._schedule_prompts(prompts, budget, admits)
        assert chunks or all(s.waits for s in self.waiting), "nothing scheduled although requests wait"
        return chunks

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """Note that the keys and values of the next `num_tokens` of its own tokens are in the cache."""
        sequence.num_computed_tokens += num_tokens
        self.block_manager.keep_computed(sequence, num_tokens)

    def fork(self, leader: Sequence) -> list[Sequence]:
        """Run the completions that waited for a prompt, now that it is computed; as many as there is room for."""
        followers, leader.followers = leader.followers, ()
        room = min(self.config.max_num_seqs - len(self.running), self.block_manager.num_free_blocks)
        ready = [s for s in followers if s.status is Status.WAITING and not s.waits_for_constraint][: max(room, 0)]
        for sequence in ready:
            self.waiting.remove(sequence)
            self.block_manager.fork(leader, sequence)
            sequence.num_cached_tokens = leader.num_cached_tokens
            self._run(sequence)
        return ready

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state and free its blocks."""
        self._remove(sequence)
        self.block_manager.free(sequence)
        sequence.finish(reason)
        self.load.finished(sequence.num_output_tokens)

    def discard(self, sequence: Sequence) -> list[int]:
        """End a sequence whose cache must not be used again; returns the blocks to clear."""
        self._remove(sequence)
        blocks = self.block_manager.discard(sequence)
        sequence.finish("abort")
        return blocks

    def recompute(self, sequence: Sequence) -> None:
        """Send a running sequence back to wait, its positions to be told the length that it has now."""
        sequence.num_known_tokens = sequence.num_tokens
        self._preempt(sequence)

    def preempt_all(self) -> None:
        """Send every running sequence back to wait, to be computed anew."""
        while self.running:
            self._preempt(self.running[-1])

    def renew_weights(self, version: int | None = None) -> int:
        """Have every sequence computed anew, without anything that other weights computed.

        Args:
            version: see `BlockManager.renew_weights`, as what is returned.
        """
        self.preempt_all()
        renewed = self.block_manager.renew_weights(version)
        for sequence in self.waiting:
            sequence.block_hashes.clear()
            if sequence.prompt_logprobs is not None and sequence.wants_prompt_logprobs:
                del sequence.prompt_logprobs[1:]
        return renewed

    def check_integrity(self) -> None:
        """Assert that running sequences hold exactly the blocks in use and waiting ones hold none."""
        assert not any(s.block_table or s.source_table for s in self.waiting), "a waiting sequence holds blocks"
        for queue in (self.running, list(self.waiting)):
            assert [s.order for s in queue] == sorted(s.order for s in queue), "a queue is out of order"
        self.block_manager.check_integrity(self.running)

    def _exceeded(self) -> str | None:
        """Name of the limit that the queue has reached."""
        config, queue = self.config, self.waiting
        if queue.num_requests >= config.max_num_queued_reqs:
            return "max_num_queued_reqs"
        if config.max_num_queued_tokens is not None and queue.num_tokens >= config.max_num_queued_tokens:
            return "max_num_queued_tokens"
        return None

    def _fit_drafts(self, sequence: Sequence, budget: int) -> int:
        """Keep of a sequence's drafts what the budget and the free blocks allow; nobody loses a block for a guess."""
        kept = min(len(sequence.draft_token_ids), budget)
        if kept and not self.block_manager.grow(sequence, kept, spare=len(self.running)):
            kept = 0
        del sequence.draft_token_ids[kept:]
        return kept

    def _schedule_prompts(self, prompts: list[Sequence], budget: int, admits: bool) -> list[Chunk]:
        """Spend a budget on running prompts, then on waiting ones."""
        lengths: dict[Sequence, int] = {}
        rest = _Rest(budget, self.config.max_num_batched_tokens, self.config.long_prefill_token_threshold)
        for sequence in prompts:
            lengths[sequence] = rest.take(sequence)
        if admits:
            self._admit(rest, lengths)
        for sequence in lengths:
            lengths[sequence] += rest.take_more(sequence, lengths[sequence])
        return [Chunk(s, n, _num_logits(s, n)) for s, n in lengths.items() if n]

    def _admit(self, rest: _Rest, lengths: dict[Sequence, int]) -> None:
        """Run waiting sequences, in order, while there is budget, a place and room in the cache."""
        at = 0
        while at < len(self.waiting) and rest.any and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[at]
            if sequence.waits:
                at += 1
                continue
            if not rest.fits_source(sequence):
                break
            if not self.block_manager.admit(sequence, self._watermark if self.running else 0):
                break
            self.waiting.remove(sequence)
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = sequence.num_computed_tokens
            self._run(sequence)
            lengths[sequence] = rest.take(sequence)

    def _make_way(self) -> None:
        """Preempt sequences of lower priority for the first that waits, if that is what it takes to run it."""
        first = next((s for s in self.waiting if not s.waits), None)
        if first is None:
            return
        lower = [s for s in self.running if s.order[0] > first.order[0]]
        spare = self._watermark
        gain = sum(map(self.block_manager.num_own_blocks, lower))
        if not lower or not self.block_manager.has_room_for(first, spare - gain):
            return
        while lower and (
            len(self.running) >= self.config.max_num_seqs or not self.block_manager.has_room_for(first, spare)
        ):
            victim = self._victim(lower)
            lower.remove(victim)
            self._preempt(victim)

    def _victim(self, sequences: list[Sequence]) -> Sequence:
        """Who is to lose its blocks: of the lowest priority, whoever loses the least."""
        lowest = max(s.order[0] for s in sequences)
        newcomer = max((s.order[1] for s in sequences if s.order[0] == lowest and not s.num_preemptions), default=-1)

        def reluctance(s: Sequence) -> tuple[bool, int, int]:
            spared = s.num_preemptions > 0 and s.order[1] < newcomer
            return spared, s.num_computed_tokens + s.lost_tokens, -s.order[1]

        return min((s for s in sequences if s.order[0] == lowest), key=reluctance)

    def _run(self, sequence: Sequence) -> None:
        sequence.run()
        insort(self.running, sequence, key=lambda s: s.order)

    def _preempt(self, sequence: Sequence) -> None:
        self._remove(sequence)
        self.block_manager.free(sequence)
        sequence.preempt()
        self.waiting.add(sequence)
        self.num_preemptions += 1

    def _remove(self, sequence: Sequence) -> None:
        queue = self.waiting if sequence.status is Status.WAITING else self.running
        queue.remove(sequence)


class _Rest:
    """What of a step is left for prompts."""

    def __init__(self, num_tokens: int, whole_step: int, threshold: int | None) -> None:
        self.num_tokens, self.whole_step, self.threshold = num_tokens, whole_step, threshold
        self.prompt_logits = MAX_PROMPT_LOGITS
        self.source_tokens = 0

    @property
    def any(self) -> bool:
        """Whether another prompt would get something."""
        return self.num_tokens > 0 and self.prompt_logits > 0

    def fits_source(self, sequence: Sequence) -> bool:
        """Count a sequence's source, unless it is too much beside the others."""
        length = len(sequence.source_token_ids)
        if self.source_tokens and self.source_tokens + length > self.whole_step:
            return False
        self.source_tokens += length
        return True

    def take(self, sequence: Sequence) -> int:
        """How many of its tokens a prompt may compute; what is longer than a step leaves half."""
        length = min(self.num_tokens, sequence.num_uncomputed_tokens, self.threshold or self.num_tokens)
        if self.threshold is None and sequence.num_uncomputed_tokens > self.whole_step:
            length = -(-length // 2)
        if sequence.wants_prompt_logprobs:
            length = min(length, self.prompt_logits)
            self.prompt_logits -= length
        self.num_tokens -= length
        return length

    def take_more(self, sequence: Sequence, length: int) -> int:
        """What nobody else needed, for a prompt that left half."""
        if self.threshold is not None or sequence.wants_prompt_logprobs:
            return 0
        more = min(self.num_tokens, sequence.num_uncomputed_tokens - length)
        self.num_tokens -= more
        return more


def _num_logits(sequence: Sequence, length: int) -> int:
    """Of how many of the next `length` own tokens the logits are wanted."""
    reaches_end = length == sequence.num_uncomputed_tokens
    if sequence.prompt_logprobs is None or not sequence.wants_prompt_logprobs:
        return int(reaches_end)
    unscored = len(sequence.prompt_logprobs) - 1  # the first position whose next token has none yet
    return max(int(reaches_end), sequence.num_computed_tokens + length - unscored)
