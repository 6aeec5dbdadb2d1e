"""The batched path agrees with the formula, and the formula with attention over whole documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.kernels.attention import varlen_attention_reference
from lmworks.kernels.paged_attention import PagedAttention, PagedSequence, paged_attention_reference, write_kv

HEAD_DIM, SCALE = 8, 0.3


def scattered(chunks, block_size, seed=0):
    """Sequences of `(start, length)` whose blocks lie in random order."""
    blocks = [-(-(start + length) // block_size) for start, length in chunks]
    order = torch.randperm(sum(blocks) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
    tables = [[order.pop() for _ in range(n)] for n in blocks]
    return [PagedSequence(t, *c) for t, c in zip(tables, chunks, strict=True)], sum(blocks) + 3


@settings(max_examples=30, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 1, 2, 63, 65, 130])), min_size=1, max_size=6),
    block_size=st.sampled_from([1, 4, 16]),
    kv_heads=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 3]),
)
def test_batched_agrees_with_the_formula(chunks, block_size, kv_heads, groups):
    generator = torch.Generator().manual_seed(len(chunks))
    sequences, num_blocks = scattered(chunks, block_size)
    cache = torch.randn(2, kv_heads, num_blocks, block_size, HEAD_DIM, generator=generator)
    n = sum(length for _, length in chunks)
    query = torch.randn(n, kv_heads * groups, HEAD_DIM, generator=generator)
    fast = PagedAttention(sequences, cache.shape, kv_heads * groups, torch.float32, cache.device)
    expected = paged_attention_reference(query, cache, sequences, scale=SCALE)
    torch.testing.assert_close(fast(query, cache, scale=SCALE), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["batched", "reference"])
@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7, 1, 30, 2], [16, 24]])
def test_any_chunking_of_a_document_gives_whole_document_attention(method, cuts):
    query, key, value = torch.randn(40, 6, HEAD_DIM), torch.randn(40, 2, HEAD_DIM), torch.randn(40, 2, HEAD_DIM)
    (whole,), num_blocks = scattered([(0, 40)], 4)
    cache = torch.zeros(2, 2, num_blocks, 4, HEAD_DIM)
    outputs, done = [], 0
    for length in cuts:
        chunk = slice(done, done + length)
        sequence = PagedSequence(whole.block_table, done, length)
        attention = PagedAttention([sequence], cache.shape, 6, torch.float32, cache.device, method)
        write_kv(cache, attention.rows, key[chunk], value[chunk])
        outputs.append(attention(query[chunk], cache, scale=SCALE))
        done += length
    cu_seqlens = torch.tensor([0, 40], dtype=torch.int32)
    expected = varlen_attention_reference(query, key, value, cu_seqlens, scale=SCALE)
    torch.testing.assert_close(torch.cat(outputs), expected, atol=2e-6, rtol=1e-5)


def test_sequences_do_not_see_each_other():
    sequences, num_blocks = scattered([(9, 1), (30, 1), (0, 20)], 4)
    cache = torch.randn(2, 2, num_blocks, 4, HEAD_DIM)
    query = torch.randn(22, 4, HEAD_DIM)
    attention = PagedAttention(sequences, cache.shape, 4, torch.float32, cache.device)
    before = attention(query, cache, scale=SCALE)
    cache[:, :, sequences[1].block_table] += 1
    after = attention(query, cache, scale=SCALE)
    changed = (before != after).flatten(1).any(1).tolist()
    assert changed == [False, True, *[False] * 20]


def test_a_single_query_in_bfloat16_is_close_to_the_formula():
    sequences, num_blocks = scattered([(100, 1), (31, 1)], 16)
    cache = torch.randn(2, 2, num_blocks, 16, HEAD_DIM).bfloat16()
    query = torch.randn(2, 4, HEAD_DIM).bfloat16()
    fast = PagedAttention(sequences, cache.shape, 4, torch.bfloat16, cache.device)(query, cache, scale=SCALE)
    expected = paged_attention_reference(query, cache, sequences, scale=SCALE)
    torch.testing.assert_close(fast, expected, atol=2e-2, rtol=2e-2)
