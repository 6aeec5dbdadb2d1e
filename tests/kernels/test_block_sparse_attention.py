"""Block-sparse attention against the dense formula under the same mask, and against Hugging Face's two patterns."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.kernels.block_sparse_attention import (
    bigbird_layout,
    block_sparse_attention,
    block_sparse_attention_reference,
    longformer_layout,
)
from lmworks.kernels.masks import Causal, Document, First, Places, Window

RAGGED = [1, 33, 7, 64, 32, 5]


def packed(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def tensors(n: int, heads: int, kv_heads: int, dim: int = 8) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((n, heads, dim), (n, kv_heads, dim), (n, kv_heads, dim))
    return [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]


def chosen(n: int, *tokens: int) -> Tensor:
    is_global = torch.zeros(n, dtype=torch.bool)
    is_global[list(tokens)] = True
    return is_global


def longformer_mask(lengths: list[int], window: int, is_global: Tensor, causal: bool) -> Tensor:
    """The rule of the paper, pair by pair."""
    mask = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool)
    start = 0
    for length in lengths:
        for i in range(start, start + length):
            for j in range(start, start + length):
                near = abs(i - j) <= window or bool(is_global[i]) or bool(is_global[j])
                mask[i, j] = near and not (causal and j > i)
        start += length
    return mask


def same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    grad = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, inputs, grad, retain_graph=True)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "block_size"), [(0, 8), (3, 8), (8, 8), (9, 8), (20, 5)])
def test_longformer_is_the_paper_s_rule(window: int, block_size: int, causal: bool):
    qkv = tensors(sum(RAGGED), 4, 2)
    is_global = chosen(sum(RAGGED), 1, 20, 60, 61, 104)
    layout = longformer_layout(packed(RAGGED), window=window, is_global=is_global, causal=causal, block_size=block_size)
    mask = longformer_mask(RAGGED, window, is_global, causal)
    assert torch.equal(layout.mask(), mask)
    same(
        block_sparse_attention(*qkv, layout, scale=0.3),
        block_sparse_attention_reference(*qkv, mask, scale=0.3),
        qkv,
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
def test_bigbird_equals_the_dense_formula(heads: int, kv_heads: int, causal: bool):
    qkv = tensors(sum(RAGGED), heads, kv_heads)
    layout = bigbird_layout(packed(RAGGED), block_size=4, num_random_blocks=2, causal=causal)
    expected = block_sparse_attention_reference(*qkv, layout.mask(), scale=0.3)
    same(block_sparse_attention(*qkv, layout, scale=0.3), expected, qkv)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_over_the_document_is_dense_attention(causal: bool):
    qkv = tensors(90, 4, 4)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in qkv), is_causal=causal, scale=0.3
    )
    dense = dense[0].transpose(0, 1)
    cu_seqlens = packed([90])
    for layout in (
        longformer_layout(cu_seqlens, window=89, causal=causal, block_size=16),
        bigbird_layout(cu_seqlens, block_size=16, window_blocks=5, causal=causal),
        bigbird_layout(cu_seqlens, block_size=16, num_random_blocks=99, global_blocks=(), causal=causal),
    ):
        same(block_sparse_attention(*qkv, layout, scale=0.3), dense, qkv)


def test_bigbird_gives_each_block_its_neighbors_the_global_ones_and_distinct_random_ones():
    layout = bigbird_layout(packed([160]), block_size=8, num_random_blocks=3)
    rows = [layout.pairs[1, layout.pairs[0] == b].tolist() for b in range(20)]
    for b, row in enumerate(rows):
        assert len(row) == len(set(row))
        assert {0, 19, b, max(b - 1, 0), min(b + 1, 19)} <= set(row)
    assert rows[0] == rows[19] == list(range(20))
    assert all(len(rows[b]) == 5 + 3 for b in range(2, 18))  # five of window and global, three random
    assert len({tuple(row) for row in rows}) > 10


def test_a_random_layout_follows_its_seed_and_nothing_else():
    def pairs(lengths: list[int], seed: int) -> set[tuple[int, int]]:
        layout = bigbird_layout(packed(lengths), block_size=4, num_random_blocks=2, seed=seed)
        return set(zip(*layout.pairs.tolist(), strict=True))

    alone = pairs([77], 3)
    assert alone == pairs([77], 3)
    assert alone != pairs([77], 4)
    beside = pairs([9, 77, 30], 3)  # 9 tokens are 3 blocks
    assert {(q - 3, k - 3) for q, k in beside if 3 <= q < 23} == alone


def test_a_causal_layout_does_not_change_as_the_document_grows():
    short, long = (
        bigbird_layout(packed([n]), block_size=4, num_random_blocks=2, global_blocks=(0,), causal=True).mask()
        for n in (40, 100)
    )
    assert torch.equal(long[:40, :40], short)
    assert not long[:, 40:][:40].any()


def test_a_document_does_not_feel_its_neighbors():
    qkv = [t.detach() for t in tensors(59, 2, 2)]
    lengths = packed([20, 9, 30])
    layouts = (
        longformer_layout(lengths, window=3, is_global=chosen(59, 0, 30), block_size=8),
        bigbird_layout(lengths, block_size=4),
    )
    changed = [t.clone() for t in qkv]
    for t in changed:
        t[:20] = 7.0
        t[29:] = float("nan")
    for layout in layouts:
        before, after = (block_sparse_attention(*x, layout, scale=0.3) for x in (qkv, changed))
        assert torch.equal(before[20:29], after[20:29])


def test_listed_blocks_grow_with_length_and_not_with_its_square():
    counts = [longformer_layout(packed([n]), window=64, block_size=32).pairs.shape[1] for n in (1024, 4096)]
    assert 3.9 < counts[1] / counts[0] < 4.3
    counts = [bigbird_layout(packed([n]), block_size=32).pairs.shape[1] for n in (1024, 4096)]
    assert 3.9 < counts[1] / counts[0] < 4.6


def test_the_layout_agrees_with_the_mask_algebra():
    cu_seqlens = packed(RAGGED)
    document = torch.repeat_interleave(torch.arange(len(RAGGED)), torch.tensor(RAGGED))
    place = torch.arange(sum(RAGGED)) - cu_seqlens[:-1].long()[document]
    places = Places(place[:, None], place[None, :], document[:, None], document[None, :])
    layout = longformer_layout(cu_seqlens, window=5, is_global=place < 2, block_size=8, causal=True)
    assert torch.equal(layout.mask(), (Document() & Causal() & (Window(6) | First(2)))(places))


def test_an_empty_document_takes_no_block():
    qkv = tensors(12, 2, 2)
    with_empty, without = torch.tensor([0, 0, 5, 5, 12, 12], dtype=torch.int32), packed([5, 7])
    for layout in (partial(longformer_layout, window=2, block_size=4), partial(bigbird_layout, block_size=4)):
        found, expected = (block_sparse_attention(*qkv, layout(c), scale=0.3) for c in (with_empty, without))
        assert torch.equal(found, expected)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="window of -1"):
        longformer_layout(packed([4]), window=-1)
    with pytest.raises(ConfigError, match="block of 0"):
        bigbird_layout(packed([4]), block_size=0)


def test_longformer_equals_hugging_face_s():
    import transformers
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        hidden_size=24, num_attention_heads=3, attention_window=[8], attention_probs_dropout_prob=0.0
    )
    theirs = LongformerSelfAttention(config, layer_id=0).eval()
    for own, shared in (("query_global", "query"), ("key_global", "key"), ("value_global", "value")):
        getattr(theirs, own).load_state_dict(getattr(theirs, shared).state_dict())
    x = torch.randn(1, 40, 24)
    is_global = chosen(40, 0, 17)
    with torch.no_grad():
        expected = theirs(
            x,
            attention_mask=is_global[None] * 10000.0,
            is_index_masked=torch.zeros(1, 40, dtype=torch.bool),
            is_index_global_attn=is_global[None],
            is_global_attn=True,
        )[0]
        qkv = [getattr(theirs, name)(x[0]).view(40, 3, 8) for name in ("query", "key", "value")]
        layout = longformer_layout(packed([40]), window=4, is_global=is_global, block_size=8)
        found = block_sparse_attention(*qkv, layout, scale=1 / math.sqrt(8))
    torch.testing.assert_close(found.flatten(1), expected[0], rtol=1e-5, atol=1e-6)


def test_bigbird_equals_hugging_face_s_given_the_same_random_blocks():
    import transformers
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    torch.manual_seed(0)
    blocks, size = 12, 4
    n = blocks * size
    layout = bigbird_layout(packed([n]), block_size=size, num_random_blocks=2)
    rows = [layout.pairs[1, layout.pairs[0] == b].tolist() for b in range(blocks)]
    drawn = [sorted(set(rows[b]) - {0, b - 1, b, b + 1, blocks - 1}) for b in range(1, blocks - 1)]

    config = transformers.BigBirdConfig(
        hidden_size=16, num_attention_heads=2, block_size=size, num_random_blocks=2, use_bias=True
    )
    theirs = BigBirdBlockSparseAttention(config).eval()
    theirs._bigbird_block_rand_mask_with_head = lambda **_: np.array([drawn, drawn])
    x = torch.randn(1, n, 16)
    blocked, band, outer, inner = transformers.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, n), size)
    with torch.no_grad():
        expected = theirs(x, band, outer, inner, blocked, blocked)[0]
        qkv = [getattr(theirs, name)(x[0]).view(n, 2, 8) for name in ("query", "key", "value")]
        found = block_sparse_attention(*qkv, layout, scale=1 / math.sqrt(8))
    torch.testing.assert_close(found.flatten(1), expected[0], rtol=1e-5, atol=1e-6)
