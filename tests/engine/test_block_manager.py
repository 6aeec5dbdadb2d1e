"""Blocks without a cache: what is shared, with whom, and what is copied before it is written."""

from __future__ import annotations

from lmworks.core.sampling import SamplingParams
from lmworks.engine.request import Request
from lmworks.engine.scheduling.block_manager import BlockManager, Copy
from lmworks.engine.scheduling.sequence import Sequence


def sequence(tokens, **request) -> Sequence:
    prompt = tuple(tokens)
    return Sequence(Request("r", prompt, SamplingParams(), **request), 0, prompt, 100)


def admitted(blocks: BlockManager, tokens, **request) -> Sequence:
    s = sequence(tokens, **request)
    assert blocks.admit(s)
    return s


def compute_all(blocks: BlockManager, s: Sequence) -> None:
    fresh = s.num_uncomputed_tokens
    s.num_computed_tokens += fresh
    blocks.keep_computed(s, fresh)


def hits(blocks: BlockManager, tokens, **request) -> int:
    s = admitted(blocks, tokens, **request)
    blocks.free(s)
    return s.num_computed_tokens


def test_salts_adapters_and_weights_do_not_share():
    blocks = BlockManager(32, 4)
    tokens = range(12)
    for request in ({}, {"cache_salt": "a"}, {"adapter": "a"}):
        assert hits(blocks, tokens, **request) == 0, request
        s = admitted(blocks, tokens, **request)
        compute_all(blocks, s)
        blocks.free(s)
        assert hits(blocks, tokens, **request) == 8, request
    assert hits(blocks, tokens, cache_salt="b") == 0
    assert hits(blocks, tokens, cache_salt="a", adapter="a") == 0
    blocks.renew_weights()
    assert hits(blocks, tokens) == 0


def test_completions_of_one_prompt_share_all_blocks_until_one_writes():
    blocks = BlockManager(16, 4)
    first = admitted(blocks, range(6))
    compute_all(blocks, first)
    others = [sequence(range(6)) for _ in range(2)]
    for other in others:
        blocks.fork(first, other)
        assert other.num_computed_tokens == 6
    everyone = [first, *others]
    assert blocks.num_free_blocks == 14
    blocks.check_integrity(everyone)
    shared = first.block_table[1]
    for s in everyone:
        s.token_ids.append(9)
        assert blocks.grow(s)
    assert blocks.num_free_blocks == 12, "the last to write needs no copy"
    assert others[1].block_table[1] == shared
    assert blocks.take_copies() == [Copy(shared, first.block_table[1]), Copy(shared, others[0].block_table[1])]
    assert blocks.take_copies() == []
    assert len({s.block_table[0] for s in everyone}) == 1
    blocks.check_integrity(everyone)


def test_a_prompt_that_ends_with_its_block_needs_no_copy():
    blocks = BlockManager(16, 4)
    first, other = admitted(blocks, range(8)), sequence(range(8))
    compute_all(blocks, first)
    blocks.fork(first, other)
    for s in (first, other):
        s.token_ids.append(9)
        assert blocks.grow(s)
    assert blocks.take_copies() == []
    assert first.block_table[:2] == other.block_table[:2]
    assert first.block_table[2] != other.block_table[2]


def test_no_copy_is_made_for_one_that_lost_its_blocks_meanwhile():
    blocks = BlockManager(3, 4)
    first, second, third = admitted(blocks, range(2)), sequence(range(2)), sequence(range(2))
    compute_all(blocks, first)
    for other in (second, third):
        blocks.fork(first, other)
    shared = first.block_table[0]
    for s in (first, second):
        s.token_ids.append(9)
        assert blocks.grow(s)
    blocks.free(first)
    newcomer = admitted(blocks, [5] * 4)
    assert blocks.take_copies() == [Copy(shared, second.block_table[0])]
    blocks.check_integrity([second, third, newcomer])


def test_without_a_free_block_a_copy_is_refused_and_nothing_changes():
    blocks = BlockManager(2, 4)
    first, second = admitted(blocks, range(2)), sequence(range(2))
    compute_all(blocks, first)
    blocks.fork(first, second)
    admitted(blocks, [7])
    first.token_ids.append(9)
    before = list(first.block_table)
    assert not blocks.grow(first)
    assert first.block_table == before
    assert blocks.take_copies() == []


def test_room_for_guesses_is_left_to_others():
    blocks = BlockManager(4, 2)
    s = admitted(blocks, range(2))
    assert not blocks.grow(s, 4, spare=2)
    assert len(s.block_table) == 1
    assert blocks.grow(s, 4, spare=1)
    assert len(s.block_table) == 3


def test_a_request_for_prompt_logprobs_finds_nothing_cached():
    blocks = BlockManager(16, 4)
    s = admitted(blocks, range(9))
    compute_all(blocks, s)
    request = Request("r", tuple(range(9)), SamplingParams(prompt_logprobs=0))
    scored = Sequence(request, 0, tuple(range(9)), 100)
    assert blocks.admit(scored)
    assert scored.num_computed_tokens == 0


def test_what_is_left_for_others_counts_when_admitting():
    blocks = BlockManager(4, 4)
    assert not blocks.admit(sequence(range(9)), spare=2)
    assert blocks.has_room_for(sequence(range(9)), spare=1)
    assert blocks.admit(sequence(range(9)), spare=1)
