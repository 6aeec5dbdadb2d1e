"""Who holds which block of the cache, and which blocks hold a prefix worth keeping.

Blocks are counted references: sequences that begin alike share their full blocks, and a block is free when
nobody holds it. A free block keeps its content until it is needed, oldest first, so that a prompt's beginning
is found again (the prefix cache). A block is known by the digest of its tokens and of all tokens before it.
A block that may still be written to is never shared, so nothing is ever copied. Knows no torch.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import sha256

from lmworks.engine.sequence import Sequence


class BlockManager:
    """Allocates blocks to sequences.

    Args:
        num_blocks: of the cache.
        block_size: tokens per block.
        enable_prefix_caching: share and keep full blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._references = [0] * num_blocks
        self._free = OrderedDict[int, None].fromkeys(range(num_blocks))
        """Blocks nobody holds, in the order in which they are reused."""
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.prefix_queries = 0
        """Tokens looked up in the prefix cache since the start."""
        self.prefix_hits = 0
        """Tokens of those that were found."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that some sequence holds, 0 to 1."""
        return 1 - len(self._free) / self.num_blocks

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence blocks for its source and all of its tokens, reusing a cached beginning, or nothing at all.

        Sets `num_computed_tokens` to the tokens found in the cache: at most all but the last, whose
        logits are needed.

        Returns:
            Whether there was room.
        """
        assert not sequence.block_table, "admitted twice"
        found = self._find_prefix(sequence)
        needed = self._blocks_for(sequence.num_tokens) - len(found)
        source = self._blocks_for(len(sequence.source_token_ids))
        free_after = len(self._free) - sum(self._references[b] == 0 for b in found)
        if needed + source > free_after:
            return False
        for block in found:
            self._hold(block)
        sequence.block_table.extend(found)
        sequence.block_table.extend(self._take() for _ in range(needed))
        sequence.source_table.extend(self._take() for _ in range(source))
        sequence.num_computed_tokens = len(found) * self.block_size
        if self.enable_prefix_caching:
            self.prefix_queries += sequence.num_tokens
            self.prefix_hits += sequence.num_computed_tokens
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Make room for all tokens of a running sequence; False when no block is free."""
        missing = self._blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if missing > len(self._free):
            return False
        sequence.block_table.extend(self._take() for _ in range(missing))
        return True

    def keep_computed(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Enter the blocks that the last `num_new_tokens` computed tokens filled into the prefix cache."""
        if not self.enable_prefix_caching:
            return
        before = sequence.num_computed_tokens - num_new_tokens
        for i in range(before // self.block_size, sequence.num_computed_tokens // self.block_size):
            digest = self._digest(sequence, i)
            if digest not in self._block_of:  # a twin computed at the same time stays anonymous
                block = sequence.block_table[i]
                self._hash_of[block], self._block_of[digest] = digest, block

    def free(self, sequence: Sequence) -> None:
        """Take back all blocks of a sequence."""
        for block in reversed(_held(sequence)):  # the end of a prefix is reused before its beginning
            self._release(block)
        sequence.block_table.clear()
        sequence.source_table.clear()

    def discard(self, sequence: Sequence) -> list[int]:
        """Take back all blocks and forget their content; returns those that nobody else holds."""
        held = _held(sequence)
        for block in held:
            self._forget(block)
        self.free(sequence)
        return [b for b in held if self._references[b] == 0]

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix: the weights changed. Nobody may hold a block."""
        assert len(self._free) == self.num_blocks, "blocks are held"
        self._hash_of.clear()
        self._block_of.clear()

    def check_integrity(self, sequences: list[Sequence]) -> None:
        """Assert that `sequences` hold exactly the blocks that are not free, and that the maps agree."""
        counts = [0] * self.num_blocks
        for sequence in sequences:
            held = _held(sequence)
            assert len(set(held)) == len(held), "a block twice in one sequence"
            for block in held:
                counts[block] += 1
        assert counts == self._references, "reference counts do not match the block tables"
        assert set(self._free) == {b for b, count in enumerate(counts) if count == 0}, "the free list is wrong"
        assert self._block_of == {digest: block for block, digest in self._hash_of.items()}, "the prefix maps differ"

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not self.enable_prefix_caching:
            return []
        found: list[int] = []
        for i in range((sequence.num_tokens - 1) // self.block_size):
            block = self._block_of.get(self._digest(sequence, i))
            if block is None:
                break
            found.append(block)
        return found

    def _digest(self, sequence: Sequence, i: int) -> bytes:
        """Digest of block `i` of a sequence and all before it; a digest, so that no crafted prompt collides."""
        hashes, size = sequence.block_hashes, self.block_size
        for j in range(len(hashes), i + 1):
            parent = hashes[j - 1] if j else b""
            tokens = array("q", sequence.token_ids[j * size : (j + 1) * size])
            hashes.append(sha256(parent + tokens.tobytes()).digest())
        return hashes[i]

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def _hold(self, block: int) -> None:
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def _release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            if block not in self._hash_of:  # nothing worth keeping: reuse it first
                self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]


def _held(sequence: Sequence) -> list[int]:
    return [*sequence.block_table, *sequence.source_table]
