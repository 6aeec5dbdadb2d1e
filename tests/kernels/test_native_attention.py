"""Native attention: a query's bits do not depend on what is computed with it, at every level of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.kernels.masks import Causal, Full, Window
from lmworks.kernels.native.library import FLAGS, NEEDED, library, processor_features
from lmworks.kernels.native_attention import native_attention, native_rule, native_write
from lmworks.kernels.paged_attention import paged_attention_reference
from lmworks.kernels.paged_step import PagedSequence, PagedStep, decoded, encoded
from lmworks.kernels.scores import DistanceBias, Scores

if library() is None:
    pytest.skip("no compiler", allow_module_level=True)

TYPES = [torch.float32, torch.bfloat16, torch.int8]


def rules(heads):
    return {
        "plain": Scores(0.2),
        "window": Scores(0.2, Causal() & Window(70)),
        "cap and sinks": Scores(0.2, softcap=2.0, sinks=torch.linspace(-2, 2, heads)),
        "slopes": Scores(0.2, bias=DistanceBias(torch.linspace(0.01, 0.9, heads))),
        "all": Scores(
            0.2, Window(150) & Causal(), 3.0, DistanceBias(torch.linspace(0.01, 0.9, heads)), torch.ones(heads)
        ),
    }


def filled_cache(dtype, blocks, kv_heads, block_size, head_dim):
    generator = torch.Generator().manual_seed(blocks)
    return encoded(torch.randn(2, kv_heads, blocks, block_size, head_dim, generator=generator), dtype)


def copied(cache, source, target):
    """The cache with some blocks' content in other places."""
    moved = cache.clone()
    moved[:, :, target] = cache[:, :, source]
    return moved


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_query_has_the_same_bits_in_any_step(data):
    draw = data.draw
    torch.manual_seed(0)
    dtype, rule = draw(st.sampled_from(TYPES)), draw(st.sampled_from(sorted(rules(1))))
    head_dim, block_size = draw(st.sampled_from([2, 16, 34, 64, 80, 128])), draw(st.sampled_from([1, 5, 16, 48]))
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (3, 3), (1, 7), (2, 8)]))
    length = draw(st.integers(1, 420))
    blocks = -(-length // block_size)
    cache = filled_cache(dtype, 2 * blocks + 3, kv_heads, block_size, head_dim)
    query = torch.randn(length, kv_heads * group, head_dim)
    scores = native_rule(rules(kv_heads * group)[rule])
    table = list(range(blocks))
    whole = native_attention(query, cache, PagedStep([PagedSequence(table, 0, length)]), scores)

    # The same sequence in other blocks, cut anywhere, among strangers that were before or after it.
    order = torch.randperm(2 * blocks + 3).tolist()
    scattered = order[:blocks]
    cuts = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=4)), max(0, length - 1)})
    moved = copied(cache, table, scattered)
    for first, last in pairwise(cuts):
        steps, queries = [PagedSequence(scattered, first, last - first)], [query[first:last]]
        for place in draw(st.lists(st.booleans(), max_size=3)):
            other = PagedSequence(order[blocks : 2 * blocks], draw(st.integers(0, length - 1)), 1)
            steps.insert(0 if place else len(steps), other)
            queries.insert(0 if place else len(queries), torch.randn(1, *query.shape[1:]))
        mine = steps.index(next(s for s in steps if s.block_table is scattered))
        got = native_attention(torch.cat(queries), moved, PagedStep(steps), scores)
        assert torch.equal(got[mine : mine + last - first], whole[first:last])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_agrees_with_the_formula(data):
    draw = data.draw
    torch.manual_seed(0)
    dtype, rule = draw(st.sampled_from(TYPES)), draw(st.sampled_from(sorted(rules(1))))
    head_dim, block_size = draw(st.sampled_from([2, 6, 64, 96, 256])), draw(st.sampled_from([1, 7, 16]))
    kv_heads, group = draw(st.sampled_from([(1, 1), (3, 3), (2, 5)]))
    chunks = draw(st.lists(st.tuples(st.integers(0, 300), st.sampled_from([1, 1, 4, 70])), min_size=1, max_size=4))
    steps, used = [], 0
    for start, length in chunks:
        count = -(-(start + length) // block_size)
        steps.append(PagedSequence(list(range(used, used + count)), start, length))
        used += count
    cache = filled_cache(dtype, used, kv_heads, block_size, head_dim)
    query = torch.randn(sum(length for _, length in chunks), kv_heads * group, head_dim).bfloat16().float()
    scores = rules(kv_heads * group)[rule]
    got = native_attention(query, cache, PagedStep(steps), native_rule(scores))
    expected = paged_attention_reference(query, cache, steps, scores)
    # Weights are rounded to bfloat16 where the processor multiplies those.
    atol = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_source_is_seen_whole_and_no_further(dtype):
    steps = PagedStep([PagedSequence([4, 1], 0, 1, 19), PagedSequence([2, 0, 3], 7, 12, 48)])
    cache = filled_cache(dtype, 5, 2, 16, 64)
    query = torch.randn(13, 6, 64).bfloat16().float()
    scores = Scores(0.2, Full())
    got = native_attention(query, cache, steps, native_rule(scores))
    atol = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, paged_attention_reference(query, cache, steps, scores), atol=atol, rtol=1e-5)
    one = native_attention(query[4:5], cache, PagedStep([PagedSequence([2, 0, 3], 10, 1, 48)]), native_rule(scores))
    assert torch.equal(one, got[4:5])


@pytest.mark.parametrize("dtype", TYPES)
def test_what_lies_behind_the_last_key_is_never_looked_at(dtype):
    """A freed block's old content, whatever it is, must not reach the sequence that has the block now."""
    steps = PagedStep([PagedSequence([0, 1], 17, 3)])
    cache, query = filled_cache(dtype, 2, 2, 16, 64), torch.randn(3, 6, 64)
    before = native_attention(query, cache, steps, native_rule(Scores(0.2)))
    poison = cache if dtype != torch.int8 else cache.view(torch.float32)
    poison[:, :, 1, 4:] = torch.nan
    assert torch.equal(native_attention(query, cache, steps, native_rule(Scores(0.2))), before)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_that_are_none_stay_visible(dtype, fault):
    cache, query = filled_cache(dtype, 2, 1, 16, 64), torch.randn(1, 1, 64)
    step, key = PagedStep([PagedSequence([0, 1], 20, 1)]), torch.randn(1, 1, 64)
    key[0, 0, 5] = fault
    native_write(cache, key, torch.randn(1, 1, 64) * fault, step)
    assert native_attention(query, cache, step, native_rule(Scores(0.2))).isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_any_size_give_shares(scale, dtype):
    cache, query = filled_cache(dtype, 30, 1, 16, 64), torch.randn(1, 1, 64).bfloat16().float()
    step = [PagedSequence(list(range(30)), 470, 1)]
    got = native_attention(query, cache, PagedStep(step), native_rule(Scores(scale)))
    expected = paged_attention_reference(query, cache, step, Scores(scale))
    torch.testing.assert_close(got, expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("given_as", [torch.float32, torch.bfloat16])
def test_writing_is_what_the_reference_stores(dtype, given_as):
    steps = PagedStep([PagedSequence([4, 1], 14, 5), PagedSequence([2], 0, 1), PagedSequence([3, 0], 0, 32)])
    both = (torch.randn(38, 2 * 3 * 64) * 3).to(
        given_as
    )  # keys and values side by side, as a fused projection has them
    key, value = (half.view(38, 3, 64) for half in both.split(3 * 64, -1))
    cache = encoded(torch.zeros(2, 3, 5, 16, 64), dtype)
    expected = cache.clone()
    native_write(cache, key, value, steps)
    row = 0
    for s in steps:
        for place in range(s.start, s.start + s.length):
            at = s.block_table[place // 16], place % 16
            expected[:, :, at[0], at[1]] = encoded(torch.stack((key[row], value[row])), dtype)
            row += 1
    if dtype == torch.int8:  # a number between two of the grid may go to either
        torch.testing.assert_close(decoded(cache), decoded(expected), atol=0.1, rtol=0)
        assert (cache != expected).float().mean() < 0.01
    else:
        assert torch.equal(cache, expected)


def test_operations_can_be_traced_and_change_what_they_say():
    steps, cache = PagedStep([PagedSequence([0, 1], 17, 3)]), filled_cache(torch.bfloat16, 2, 2, 16, 64)
    query, key = torch.randn(3, 6, 64), torch.randn(3, 2, 64)
    shares = steps.block_tables, steps.causal_shares
    rule = (0.2, 0.0, 0, None, None)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lmworks.paged_attention, (query, cache, *shares, *rule), test_utils=checks)
    torch.library.opcheck(torch.ops.lmworks.write_cache, (cache, key, key, *shares), test_utils=checks)


LEVELS = [level for level in FLAGS if NEEDED[level] <= processor_features()]


@pytest.mark.parametrize("level", LEVELS[1:])
def test_other_levels_pass_the_same_tests(level):
    """In processes of their own: a process has one level."""
    chosen = ["any_step", "formula", "writing", "looked_at", "any_size", "stay_visible", "seen_whole"]
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-p", "no:cacheprovider", "-k", " or ".join(chosen)]
    environment = {**os.environ, "LMWORKS_NATIVE_ISA": level}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
