"""Who holds which block of the cache, and which blocks hold a prefix worth keeping.

Blocks are counted references: sequences that begin alike share their full blocks, and a block is free when
nobody holds it. A free block keeps its content until it is needed, oldest first, so that a prompt's beginning
is found again (the prefix cache). A block is known by the digest of its tokens, of all tokens before it, and of what
else its keys depend on or who may know of them: the weights' version, the adapter, the request's salt.

The completions of one prompt share all of its blocks, the last one too, which they will write to: whoever writes
first takes a copy (copy-on-write). The manager only says what is to be copied. Knows no torch.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import sha256
from typing import NamedTuple

from lmworks.engine.scheduling.sequence import Sequence


class Copy(NamedTuple):
    """A block whose content is wanted in another, before the step writes anything."""

    source: int
    target: int


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
        self._sources: dict[int, int] = {}
        """Block to be filled, and the one that it is a copy of."""
        self._weight_version = self._newest_version = 0
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

    def has_room_for(self, sequence: Sequence, spare: int = 0) -> bool:
        """Whether `admit` would succeed."""
        return self._room(sequence, self._find_prefix(sequence)) >= spare

    def admit(self, sequence: Sequence, spare: int = 0) -> bool:
        """Give a sequence blocks for its source and all of its tokens, reusing a cached beginning, or nothing at all.

        Sets `num_computed_tokens` to the tokens found in the cache: at most all but the last, whose
        logits are needed.

        Args:
            sequence: holds nothing yet.
            spare: blocks that must be left for others.

        Returns:
            Whether there was room.
        """
        assert not sequence.block_table, "admitted twice"
        found = self._find_prefix(sequence)
        if self._room(sequence, found) < spare:
            return False
        for block in found:
            self._hold(block)
        sequence.block_table.extend(found)
        needed = self._blocks_for(sequence.num_tokens) - len(found)
        sequence.block_table.extend(self._take() for _ in range(needed))
        source = self._blocks_for(len(sequence.source_token_ids))
        sequence.source_table.extend(self._take() for _ in range(source))
        sequence.num_computed_tokens = len(found) * self.block_size
        if self.enable_prefix_caching:
            self.prefix_queries += sequence.num_tokens
            self.prefix_hits += sequence.num_computed_tokens
        return True

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a sequence hold all blocks of another that has the same tokens."""
        assert not child.block_table, "admitted twice"
        for block in _held(parent):
            self._references[block] += 1
        child.block_table.extend(parent.block_table)
        child.source_table.extend(parent.source_table)
        child.block_hashes[:] = parent.block_hashes
        child.num_computed_tokens = parent.num_computed_tokens

    def grow(self, sequence: Sequence, num_drafts: int = 0, spare: int = 0) -> bool:
        """Make room for all tokens of a running sequence and some drafted ones, or change nothing.

        The block that is written to next becomes its own.

        Args:
            sequence: holds blocks for its computed tokens.
            num_drafts: tokens that may follow its own.
            spare: blocks that must be left for others.

        Returns:
            Whether there was room.
        """
        table = sequence.block_table
        written = sequence.num_computed_tokens // self.block_size
        missing = self._blocks_for(sequence.num_tokens + num_drafts) - len(table)
        shared = written < len(table) and self._references[table[written]] > 1
        if missing <= 0 and not shared:
            return True
        if max(missing, 0) + shared + spare > len(self._free):
            return False
        if shared:
            own = self._take()
            self._sources[own] = table[written]
            self._release(table[written])
            table[written] = own
        table.extend(self._take() for _ in range(missing))
        return True

    def take_copies(self) -> list[Copy]:
        """What the cache has to copy before the next step. All sources are read before any target is written."""
        copies = [Copy(source, target) for target, source in self._sources.items()]
        self._sources.clear()
        return copies

    def num_own_blocks(self, sequence: Sequence) -> int:
        """How many blocks would be free if the sequence gave its own back."""
        return sum(self._references[block] == 1 for block in _held(sequence))

    def keep_computed(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Enter the blocks that the last `num_new_tokens` computed tokens filled into the prefix cache."""
        if not self.enable_prefix_caching:
            return
        after, size = sequence.num_computed_tokens, self.block_size
        for i in range((after - num_new_tokens) // size, after // size):
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

    def renew_weights(self, version: int | None = None) -> int:
        """From now on no prefix is found that other weights computed. Sequences must forget their digests.

        Args:
            version: of weights that this returned before, whose prefixes are found again; None is a new one.
        """
        if version is None:
            version = self._newest_version = self._newest_version + 1
        self._weight_version = version
        return version

    def forget_prefixes(self) -> None:
        """The cache's content is gone: nothing in it is found any more."""
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
        assert all(counts[target] for target in self._sources), "a copy for nobody"

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not self.enable_prefix_caching or sequence.wants_prompt_logprobs:
            return []
        found: list[int] = []
        for i in range((sequence.num_tokens - 1) // self.block_size):
            block = self._block_of.get(self._digest(sequence, i))
            if block is None:
                break
            found.append(block)
        return found

    def _room(self, sequence: Sequence, found: list[int]) -> int:
        """Blocks that would be left if a sequence were admitted that finds these of its beginning; may be negative."""
        needed = self._blocks_for(sequence.num_tokens) - len(found) + self._blocks_for(len(sequence.source_token_ids))
        return len(self._free) - sum(self._references[b] == 0 for b in found) - needed

    def _digest(self, sequence: Sequence, i: int) -> bytes:
        """Digest of block `i` of a sequence and all before it; a digest, so that no crafted prompt collides."""
        hashes, size = sequence.block_hashes, self.block_size
        for j in range(len(hashes), i + 1):
            parent = hashes[j - 1] if j else self._origin(sequence)
            tokens = array("q", sequence.token_ids[j * size : (j + 1) * size])
            hashes.append(sha256(parent + tokens.tobytes()).digest())
        return hashes[i]

    def _origin(self, sequence: Sequence) -> bytes:
        """What the keys of a sequence depend on besides its tokens, and who may share them."""
        request, adapter = sequence.request, sequence.adapter
        loaded = None if adapter is None else adapter.number  # one loaded anew under its name is another
        return repr((self._weight_version, request.adapter, loaded, request.cache_salt)).encode()

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
            self._sources.pop(block, None)
            if block not in self._hash_of:  # nothing worth keeping: reuse it first
                self._free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]


def _held(sequence: Sequence) -> list[int]:
    return [*sequence.block_table, *sequence.source_table]
