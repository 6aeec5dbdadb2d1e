"""FlashAttention's tiles against torch's attention: values, gradients, and what memory they keep."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lmworks.kernels.flash_attention_reference import flash_attention_extra_bytes, flash_attention_reference

RAGGED = [1, 33, 7, 64, 32, 5]


def case(lengths: list[int], heads: int, kv_heads: int, dim: int = 8, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(0)
    n = sum(lengths)
    shapes = ((n, heads, dim), (n, kv_heads, dim), (n, kv_heads, dim))
    qkv = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return qkv, torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def formula(qkv: list[Tensor], lengths: list[int], scale: float, causal: bool) -> Tensor:
    """Document by document through torch's own attention."""
    documents = zip(*(t.split(lengths) for t in qkv), strict=True)
    outputs = [
        F.scaled_dot_product_attention(
            *(t.transpose(0, 1)[None] for t in document), is_causal=causal, scale=scale, enable_gqa=True
        )
        for document in documents
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outputs])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("tiles", [(16, 16), (16, 9), (7, 24), (1, 1), (100, 100)], ids=str)
def test_values_and_gradients_equal_the_formula(tiles: tuple[int, int], heads: int, kv_heads: int, causal: bool):
    lengths = RAGGED if min(tiles) > 1 else [5, 1, 3]
    qkv, cu_seqlens = case(lengths, heads, kv_heads)
    expected = formula(qkv, lengths, 0.3, causal)
    found = flash_attention_reference(
        *qkv, cu_seqlens, scale=0.3, causal=causal, query_tile=tiles[0], key_tile=tiles[1]
    )
    torch.testing.assert_close(found, expected)
    grad = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, qkv, grad)
    for mine, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("causal", [True, False])
def test_the_recomputed_backward_passes_gradcheck(causal: bool):
    qkv, cu_seqlens = case([7, 4], 2, 1, dim=3)

    def attention(*inputs: Tensor) -> Tensor:
        return flash_attention_reference(*inputs, cu_seqlens, scale=0.5, causal=causal, query_tile=3, key_tile=2)

    assert torch.autograd.gradcheck(attention, qkv)


def test_large_scores_do_not_overflow():
    qkv, cu_seqlens = case([40], 2, 2, dtype=torch.float32)
    found = flash_attention_reference(*qkv, cu_seqlens, scale=1e4, query_tile=8, key_tile=8)
    torch.testing.assert_close(found, formula(qkv, [40], 1e4, True))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), qkv))


def test_bfloat16_is_summed_in_float32():
    qkv, cu_seqlens = case(RAGGED, 4, 2, dtype=torch.bfloat16)
    wide = [t.detach().float().requires_grad_() for t in qkv]
    found, expected = flash_attention_reference(*qkv, cu_seqlens, scale=0.3), formula(wide, RAGGED, 0.3, True)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 3e-3  # half a unit in the last place: 2^-9
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), qkv), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - theirs).norm() <= 1e-2 * theirs.norm() + 1e-3


def test_a_document_does_not_feel_its_neighbors():
    qkv, cu_seqlens = case([20, 9, 30], 2, 2)
    changed = [t.detach().clone() for t in qkv]
    for t in changed:
        t[:20] = 3.0
        t[29:] = float("nan")
    before, after = (flash_attention_reference(*x, cu_seqlens, scale=0.3, query_tile=4) for x in (qkv, changed))
    assert torch.equal(before[20:29], after[20:29])


@pytest.mark.parametrize("tokens", [64, 200])
def test_only_the_log_sum_exp_is_kept_for_the_backward_pass(tokens: int):
    qkv, cu_seqlens = case([tokens], 4, 2, dtype=torch.float32)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = flash_attention_reference(*qkv, cu_seqlens, scale=0.3)
    held = {t.data_ptr() for t in (*qkv, out)}
    extra = sum(t.nbytes for t in saved if t.data_ptr() not in held)
    assert extra == flash_attention_extra_bytes(tokens, 4, 8).saved
    assert extra < 4 * tokens**2 * 4 / 8  # the formula's weights


@pytest.mark.parametrize("tokens", [256, 512])
def test_the_forward_pass_works_within_the_counted_memory_at_any_length(tokens: int):
    qkv, cu_seqlens = case([tokens], 4, 4, dim=16, dtype=torch.float32)
    counted = flash_attention_extra_bytes(tokens, 4, 16, query_tile=32, key_tile=32)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        out = flash_attention_reference(*qkv, cu_seqlens, scale=0.3, query_tile=32, key_tile=32)
    steps = [e.nbytes() for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = max(sum(steps[: i + 1]) for i in range(len(steps)))
    assert counted.working / 2 < peak - out.nbytes - counted.saved <= counted.working
    assert math.isclose(counted.working, flash_attention_extra_bytes(9, 4, 16, query_tile=32, key_tile=32).working)


def test_an_empty_document_changes_nothing():
    qkv, cu_seqlens = case([5, 7], 2, 2)
    empty = torch.tensor([0, 0, 5, 5, 12], dtype=torch.int32)
    found, expected = (flash_attention_reference(*qkv, c, scale=0.3, query_tile=4) for c in (empty, cu_seqlens))
    assert torch.equal(found, expected)
