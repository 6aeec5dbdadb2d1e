"""The fast paths agree with the formula, and the formula with attention over whole documents, for every rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError
from lmworks.kernels.attention import varlen_attention_reference
from lmworks.kernels.masks import Causal, First, Full, Window
from lmworks.kernels.native.library import library
from lmworks.kernels.paged_attention import PagedAttention, PagedWrite, paged_attention_reference
from lmworks.kernels.paged_step import PagedSequence
from lmworks.kernels.scores import DistanceBias, Scores

HEAD_DIM, SCALE = 8, 0.3
CPU = torch.device("cpu")
METHODS = ["auto", "batched", "reference"]


def random_bias(heads):
    table = torch.randn(heads, 512, generator=torch.Generator().manual_seed(1))
    return lambda query, key: table[:, (query[:, None] - key[None, :]).clamp(0, 511)]


RULES = {
    "causal": lambda heads: Scores(SCALE),
    "window": lambda heads: Scores(SCALE, Causal() & Window(10)),
    "window of one": lambda heads: Scores(SCALE, Causal() & Window(1)),
    "window and first": lambda heads: Scores(SCALE, Causal() & (Window(9) | First(3))),
    "alibi": lambda heads: Scores(SCALE, bias=DistanceBias(torch.linspace(0.1, 0.9, heads))),
    "bias in a window": lambda heads: Scores(SCALE, Causal() & Window(10), bias=random_bias(heads)),
    "soft cap": lambda heads: Scores(SCALE, softcap=0.7),
    "sinks": lambda heads: Scores(SCALE, sinks=torch.linspace(-2, 2, heads)),
    "all": lambda heads: Scores(
        SCALE, Causal() & Window(20), softcap=1.5, bias=random_bias(heads), sinks=torch.linspace(-1, 3, heads)
    ),
}


def scattered(chunks, block_size, seed=0):
    """Sequences of `(start, length)` whose blocks lie in random order."""
    blocks = [-(-(start + length) // block_size) for start, length in chunks]
    order = torch.randperm(sum(blocks) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
    tables = [[order.pop() for _ in range(n)] for n in blocks]
    return [PagedSequence(t, *c) for t, c in zip(tables, chunks, strict=True)], sum(blocks) + 3


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 1, 2, 63, 65, 130])), min_size=1, max_size=6),
    block_size=st.sampled_from([1, 4, 16]),
    kv_heads=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 3]),
    rule=st.sampled_from(sorted(RULES)),
    latent=st.booleans(),
    method=st.sampled_from(["auto", "batched"]),
)
def test_fast_paths_agree_with_the_formula(chunks, block_size, kv_heads, groups, rule, latent, method):
    generator = torch.Generator().manual_seed(len(chunks))
    sequences, num_blocks = scattered(chunks, block_size)
    cache = torch.randn(1 if latent else 2, kv_heads, num_blocks, block_size, HEAD_DIM, generator=generator)
    n = sum(length for _, length in chunks)
    query = torch.randn(n, kv_heads * groups, HEAD_DIM, generator=generator)
    scores, width = RULES[rule](kv_heads * groups), 5 if latent else None
    expected = paged_attention_reference(query, cache, sequences, scores, width)
    assert expected.shape == (n, kv_heads * groups, width or HEAD_DIM)
    got = PagedAttention(sequences, method)(query, cache, scores, width)
    torch.testing.assert_close(got, expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7, 1, 30, 2]])
def test_any_chunking_of_a_document_gives_whole_document_attention(method, rule, cuts):
    query, key, value = torch.randn(40, 6, HEAD_DIM), torch.randn(40, 2, HEAD_DIM), torch.randn(40, 2, HEAD_DIM)
    (whole,), num_blocks = scattered([(0, 40)], 4)
    cache = torch.zeros(2, 2, num_blocks, 4, HEAD_DIM)
    scores = RULES[rule](6)
    outputs, done = [], 0
    for length in cuts:
        chunk = slice(done, done + length)
        sequence = PagedSequence(whole.block_table, done, length)
        PagedWrite([sequence], CPU, method)(cache, key[chunk], value[chunk])
        outputs.append(PagedAttention([sequence], method)(query[chunk], cache, scores))
        done += length
    cu_seqlens = torch.tensor([0, 40], dtype=torch.int32)
    expected = varlen_attention_reference(query, key, value, cu_seqlens, scores)
    torch.testing.assert_close(torch.cat(outputs), expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("queries", [[1, 1, 1], [1, 3, 70]])
def test_a_source_is_seen_whole_from_any_position(method, queries):
    lengths = [9, 30, 17]
    stored, num_blocks = scattered([(0, n) for n in lengths], 4)
    cache = torch.randn(2, 2, num_blocks, 4, HEAD_DIM)
    key, value = torch.randn(sum(lengths), 2, HEAD_DIM), torch.randn(sum(lengths), 2, HEAD_DIM)
    PagedWrite(stored, CPU, method)(cache, key, value)
    asking = [PagedSequence(s.block_table, 5, q, s.length) for s, q in zip(stored, queries, strict=True)]
    query = torch.randn(sum(queries), 4, HEAD_DIM)
    bounds = [torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32) for n in (queries, lengths)]
    scores = Scores(SCALE, Full())
    expected = varlen_attention_reference(query, key, value, bounds[0], scores, key_cu_seqlens=bounds[1])
    torch.testing.assert_close(PagedAttention(asking, method)(query, cache, scores), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_layers_of_different_shape_and_mask_share_one_step(method):
    sequences, num_blocks = scattered([(9, 1), (30, 1), (0, 20), (90, 1)], 4)
    attention, write = PagedAttention(sequences, method), PagedWrite(sequences, CPU, method)
    for kv_heads, width, rule in [(2, 8, "causal"), (1, 16, "causal"), (2, 8, "window"), (2, 8, "causal")]:
        cache = torch.randn(2, kv_heads, num_blocks, 4, width)
        query, key, value = torch.randn(23, 4, width), *torch.randn(2, 23, kv_heads, width)
        write(cache, key, value)
        expected = paged_attention_reference(query, cache, sequences, RULES[rule](4))
        torch.testing.assert_close(attention(query, cache, RULES[rule](4)), expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", ["causal", "window"])
def test_sequences_do_not_see_each_other(method, rule):
    sequences, num_blocks = scattered([(9, 1), (30, 1), (0, 20)], 4)
    cache = torch.randn(2, 2, num_blocks, 4, HEAD_DIM)
    query = torch.randn(22, 4, HEAD_DIM)
    attention = PagedAttention(sequences, method)
    before = attention(query, cache, RULES[rule](4))
    cache[:, :, sequences[1].block_table] += 1
    after = attention(query, cache, RULES[rule](4))
    changed = (before != after).flatten(1).any(1).tolist()
    assert changed == [False, True, *[False] * 20]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", ["causal", "all", "alibi"])
def test_a_single_query_in_bfloat16_is_close_to_the_formula(method, rule):
    sequences, num_blocks = scattered([(100, 1), (31, 1)], 16)
    cache = torch.randn(2, 2, num_blocks, 16, HEAD_DIM).bfloat16()
    query = torch.randn(2, 4, HEAD_DIM).bfloat16()
    fast = PagedAttention(sequences, method)(query, cache, RULES[rule](4))
    assert fast.dtype == torch.bfloat16
    expected = paged_attention_reference(query, cache, sequences, RULES[rule](4))
    torch.testing.assert_close(fast, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", ["causal", "all", "alibi"])
def test_a_cache_of_int8_is_close_to_one_of_floats(method, rule):
    sequences, num_blocks = scattered([(0, 100), (31, 1)], 16)
    floats = torch.zeros(2, 2, num_blocks, 16, HEAD_DIM)
    small = torch.zeros(2, 2, num_blocks, 16, HEAD_DIM + 4, dtype=torch.int8)
    key, value, query = torch.randn(101, 2, HEAD_DIM), torch.randn(101, 2, HEAD_DIM), torch.randn(101, 4, HEAD_DIM)
    key[3], value[7] = 0, 0
    for cache in (floats, small):
        PagedWrite(sequences, CPU, method)(cache, key, value)
    expected = paged_attention_reference(query, floats, sequences, RULES[rule](4))
    got = PagedAttention(sequences, method)(query, small, RULES[rule](4))
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)


@pytest.mark.skipif(library() is None, reason="no compiler")
def test_what_has_no_native_code_is_refused_where_native_is_asked_for():
    sequences, num_blocks = scattered([(9, 1)], 4)
    cache, query = torch.zeros(2, 2, num_blocks, 4, HEAD_DIM), torch.zeros(1, 4, HEAD_DIM)
    native = PagedAttention(sequences, "native")
    for rule, reason in {"window and first": "mask", "bias in a window": "bias"}.items():
        with pytest.raises(ConfigError, match=rf"{reason}.*Set attention to auto"):
            native(query, cache, RULES[rule](4))
    with pytest.raises(ConfigError, match="caches of 1 planes"):
        native(query, cache[:1], RULES["causal"](4))
