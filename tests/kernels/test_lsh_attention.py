"""Reformer's chunked attention against the dense formula over the same buckets."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels.lsh_attention import lsh_attention, lsh_attention_reference, lsh_buckets

RAGGED = [1, 33, 7, 64, 2, 5]


def case(lengths: list[int], heads: int = 2, kv_heads: int = 2, dim: int = 8, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(0)
    n = sum(lengths)
    shapes = ((n, heads, dim), (n, kv_heads, dim))
    inputs = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return inputs, torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    grad = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2)])
@pytest.mark.parametrize(
    ("num_buckets", "num_hashes", "chunk_length"), [(4, 1, 8), (4, 3, 8), ((2, 4), 4, 4), (16, 2, 5), (1, 2, 8)]
)
def test_values_and_gradients_equal_the_dense_formula(num_buckets, num_hashes, chunk_length, heads, kv_heads, causal):
    inputs, cu_seqlens = case(RAGGED, heads, kv_heads)
    options = {
        "num_buckets": num_buckets, "num_hashes": num_hashes, "chunk_length": chunk_length,
        "scale": 0.7, "causal": causal, "seed": 3,
    }  # fmt: skip
    found = lsh_attention(*inputs, cu_seqlens, **options)
    same(found, lsh_attention_reference(*inputs, cu_seqlens, **options), inputs)


@pytest.mark.parametrize("num_hashes", [1, 3])
def test_one_bucket_in_one_chunk_is_dense_attention(num_hashes: int):
    inputs, cu_seqlens = case([40])
    query, value = inputs
    shown = ~torch.eye(40, dtype=torch.bool)  # all but itself
    dense = F.scaled_dot_product_attention(
        *(t.transpose(0, 1) for t in (query, F.normalize(query, dim=-1), value)), attn_mask=shown, scale=0.7
    ).transpose(0, 1)
    found = lsh_attention(
        *inputs, cu_seqlens, num_buckets=1, num_hashes=num_hashes, chunk_length=64, scale=0.7, causal=False
    )
    same(found, dense, inputs)


def test_more_rounds_come_nearer_to_dense_attention():
    query, value = (t.detach() for t in case([256], dim=16)[0])
    cu_seqlens = torch.tensor([0, 256], dtype=torch.int32)

    def attention(num_buckets: int, num_hashes: int) -> Tensor:
        return lsh_attention(
            query, value, cu_seqlens, num_buckets=num_buckets, num_hashes=num_hashes, chunk_length=256, scale=4.0
        )

    dense = attention(1, 1)
    errors = [float((attention(8, rounds) - dense).norm() / dense.norm()) for rounds in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 3


def test_like_vectors_share_buckets_and_opposite_ones_do_not():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 16, generator=g)
    buckets = lsh_buckets(torch.cat((x, 3 * x, -x)), 8, 4, seed=0)
    assert buckets.shape == (4, 600, 2)
    original, longer, opposite = buckets.split(200, dim=1)
    assert torch.equal(original, longer)
    assert torch.equal((original + 4) % 8, opposite)
    assert original.unique().tolist() == list(range(8))
    near = lsh_buckets(x + 0.1 * torch.randn(x.shape, generator=g), 8, 4, seed=0)
    assert (near == original).float().mean() > 0.8
    parts = lsh_buckets(x, (4, 6), 2, seed=0)
    assert parts.unique().tolist() == list(range(24))


def test_the_seed_alone_chooses_the_rotations():
    x = torch.randn(100, 2, 16)
    assert torch.equal(lsh_buckets(x, 8, 2, seed=1), lsh_buckets(x, 8, 2, seed=1))
    assert not torch.equal(lsh_buckets(x, 8, 2, seed=1), lsh_buckets(x, 8, 2, seed=2))


def test_a_lone_token_sees_itself():
    (query, value), cu_seqlens = case([1, 1, 5])
    out = lsh_attention(query, value, cu_seqlens, num_buckets=4, num_hashes=2, chunk_length=4, scale=1.0)
    torch.testing.assert_close(out[:3], value[:3])  # two documents of one token, and the first of the third


@pytest.mark.parametrize("causal", [True, False])
def test_a_document_does_not_feel_its_neighbors(causal: bool):
    (query, value), cu_seqlens = case([20, 9, 30])
    options = {"num_buckets": 4, "num_hashes": 3, "chunk_length": 4, "scale": 0.7, "causal": causal}
    changed = [t.detach().clone() for t in (query, value)]
    for t in changed:
        t[:20] = 3.0
        t[29:] = float("nan")
    before, after = (lsh_attention(*x, cu_seqlens, **options) for x in ((query, value), changed))
    assert torch.equal(before[20:29], after[20:29])
    alone = lsh_attention(query[20:29], value[20:29], torch.tensor([0, 9], dtype=torch.int32), **options)
    torch.testing.assert_close(alone, before[20:29])


def test_an_empty_document_changes_nothing():
    inputs, cu_seqlens = case([5, 7])
    options = {"num_buckets": 2, "num_hashes": 2, "chunk_length": 4, "scale": 0.7}
    empty = torch.tensor([0, 0, 5, 5, 12], dtype=torch.int32)
    assert torch.equal(lsh_attention(*inputs, empty, **options), lsh_attention(*inputs, cu_seqlens, **options))


def test_bfloat16_is_summed_in_float32():
    inputs, cu_seqlens = case(RAGGED, dtype=torch.bfloat16)
    options = {"num_buckets": 4, "num_hashes": 2, "chunk_length": 8, "scale": 0.7}
    found = lsh_attention(*inputs, cu_seqlens, **options)
    expected = lsh_attention(*(t.float() for t in inputs), cu_seqlens, **options)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 3e-3


def test_impossible_hashes_are_refused():
    inputs, cu_seqlens = case([4])
    for wrong in ({"num_buckets": 3}, {"num_buckets": (4, 5)}, {"num_buckets": 0}, {"num_hashes": 0}):
        options = {"num_buckets": 4, "num_hashes": 1, "chunk_length": 4, "scale": 1.0} | wrong
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            lsh_attention(*inputs, cu_seqlens, **options)
