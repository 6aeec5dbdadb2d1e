"""Which tokens the next step computes: continuous batching in one file.

There is no prefill phase and no decode phase. Each running sequence has tokens that are not computed yet (a whole
prompt, or the one token just sampled), and a step computes up to `max_num_batched_tokens` of them:

1. sequences that decode get their one token each, oldest first;
2. what is left of the budget goes to running prompts, in chunks;
3. then to waiting sequences, first come, first served, each admitted only if all its tokens fit in the cache.

Sources for an encoder cannot be cut into chunks. They have a budget of the same size for themselves, and one that
exceeds it is the only one of its step.

When a decoding sequence finds no free block, the youngest running sequence loses its blocks and waits again, in
front; its tokens are recomputed later (preemption by recomputation, as in vLLM, arXiv:2309.06180). The oldest always
proceeds, so every request ends. Knows no torch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lmworks.core.errors import EngineOverloadedError
from lmworks.core.generation import FinishReason
from lmworks.engine.block_manager import BlockManager
from lmworks.engine.config import EngineConfig
from lmworks.engine.sequence import Sequence, Status


@dataclass(frozen=True)
class Chunk:
    """The next `length` uncomputed tokens of a sequence, those drafted for it included."""

    sequence: Sequence
    length: int
    num_logits: int
    """Logits are wanted after so many of the last tokens: 1 where the chunk reaches the sequence's end, else 0."""

    @property
    def start(self) -> int:
        """Position of the first."""
        return self.sequence.num_computed_tokens

    @property
    def token_ids(self) -> list[int]:
        """The `length` tokens."""
        sequence, start = self.sequence, self.sequence.num_computed_tokens
        tokens = sequence.token_ids[start : start + self.length]
        return tokens + sequence.draft_token_ids[: self.length - len(tokens)] if sequence.draft_token_ids else tokens

    @property
    def encodes(self) -> bool:
        """Whether the sequence's source must be encoded first."""
        return self.start == 0 and bool(self.sequence.source_token_ids)


def _chunk(sequence: Sequence, budget: int) -> Chunk:
    """As many of a sequence's uncomputed tokens as the budget allows."""
    length = min(budget, sequence.num_uncomputed_tokens)
    return Chunk(sequence, length, int(length == sequence.num_uncomputed_tokens))


class Scheduler:
    """Holds every unfinished sequence, waiting or running.

    Args:
        config: limits.
        block_manager: of the cache.
    """

    def __init__(self, config: EngineConfig, block_manager: BlockManager) -> None:
        self.config, self.block_manager = config, block_manager
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Oldest first."""
        self.num_preemptions = 0

    @property
    def has_room(self) -> bool:
        """Whether another request may be added."""
        return len(self.waiting) < self.config.max_waiting

    def add(self, sequences: list[Sequence]) -> None:
        """Queue a request's sequences.

        Raises:
            EngineOverloadedError: too many are waiting.
        """
        if not self.has_room:
            raise EngineOverloadedError(
                f"{len(self.waiting)} requests are waiting and max_waiting is {self.config.max_waiting}",
                "Retry later, or raise max_waiting",
            )
        self.waiting.extend(sequences)

    def schedule(self) -> list[Chunk]:
        """Choose the tokens of the next step, decoding sequences first; empty when nothing is left to do."""
        budget, encoded = self.config.max_num_batched_tokens, 0
        chunks: list[Chunk] = []
        preempted = False
        for sequence in [s for s in self.running if s.num_uncomputed_tokens == 1]:
            while sequence.status is Status.RUNNING and not self.block_manager.grow(sequence):
                self._preempt(self.running[-1])
                preempted = True
            if sequence.status is Status.RUNNING:
                chunks.append(Chunk(sequence, 1, 1))
                budget -= 1
        for sequence in [s for s in self.running if s.num_uncomputed_tokens > 1]:
            if budget:
                chunks.append(_chunk(sequence, budget))
                budget -= chunks[-1].length
        # A step that had to preempt admits nobody: the cache is too full.
        while self.waiting and budget and not preempted and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            source = len(sequence.source_token_ids)
            if encoded and encoded + source > self.config.max_num_batched_tokens:
                break
            if not self.block_manager.admit(sequence):
                break
            encoded += source
            self.waiting.popleft()
            if sequence.num_preemptions == 0:
                sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.run()
            self.running.append(sequence)
            chunks.append(_chunk(sequence, budget))
            budget -= chunks[-1].length
        assert chunks or not (self.waiting or self.running), "nothing scheduled although requests wait"
        return chunks

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are in the cache."""
        chunk.sequence.num_computed_tokens += chunk.length
        self.block_manager.keep_computed(chunk.sequence, chunk.length)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state and free its blocks."""
        self._remove(sequence)
        self.block_manager.free(sequence)
        sequence.finish(reason)

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

    def check_integrity(self) -> None:
        """Assert that running sequences hold exactly the blocks in use and waiting ones hold none."""
        assert not any(s.block_table or s.source_table for s in self.waiting), "a waiting sequence holds blocks"
        self.block_manager.check_integrity(self.running)

    def _preempt(self, sequence: Sequence) -> None:
        self._remove(sequence)
        self.block_manager.free(sequence)
        sequence.preempt()
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _remove(self, sequence: Sequence) -> None:
        queue = self.waiting if sequence.status is Status.WAITING else self.running
        queue.remove(sequence)
