"""Packed attention: every fast path against the formula, and no document sees another."""

import pytest
import torch

import lmworks.kernels.bucketed_attention as bucketed
from lmworks.kernels.attention import varlen_attention, varlen_attention_reference

LENGTHS = {
    "ragged": [1, 33, 7, 64, 32, 5],
    "one token each": [1, 1, 1],
    "equal": [40, 40],
    "single": [17],
    "one beyond the bucketed path": [3, 600, 20],
}


def case(lengths: list[int], heads: int, kv_heads: int, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(0)
    n = sum(lengths)
    shapes = ((n, heads, 8), (n, kv_heads, 8), (n, kv_heads, 8))
    qkv = [torch.randn(s, generator=g).to(dtype).requires_grad_() for s in shapes]
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return qkv, cu_seqlens, torch.randn(n, heads, 8, generator=g).to(dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("name", LENGTHS)
def test_values_and_gradients_equal_the_formula(name: str, heads: int, kv_heads: int, causal: bool):
    qkv, cu_seqlens, grad = case(LENGTHS[name], heads, kv_heads)
    expected = varlen_attention_reference(*qkv, cu_seqlens, scale=0.3, causal=causal)
    wanted = torch.autograd.grad(expected, qkv, grad)
    found = varlen_attention(*qkv, cu_seqlens, scale=0.3, causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            varlen_attention(*qkv, cu_seqlens, scale=0.3, causal=causal), expected, rtol=1e-5, atol=1e-5
        )


def test_bfloat16_stays_near_the_float32_formula():
    qkv, cu_seqlens, grad = case(LENGTHS["ragged"], 4, 2, torch.bfloat16)
    wide = [t.detach().float().requires_grad_() for t in qkv]
    expected = varlen_attention_reference(*wide, cu_seqlens, scale=0.3)
    found = varlen_attention(*qkv, cu_seqlens, scale=0.3)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 1e-2
    wanted = torch.autograd.grad(expected, wide, grad.float())
    for mine, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted, strict=True):
        assert (mine.float() - theirs).norm() / theirs.norm() < 2e-2


@pytest.mark.parametrize("training", [True, False])
def test_a_document_does_not_feel_its_neighbors(training: bool):
    qkv, cu_seqlens, _ = case([20, 9, 30], 2, 2)
    with torch.set_grad_enabled(training):
        before = varlen_attention(*qkv, cu_seqlens, scale=0.3).detach()
        changed = [t.detach().clone().requires_grad_() for t in qkv]
        with torch.no_grad():
            for t in changed:
                t[:20] = torch.randn(20, 2, 8) * 5
                t[29:] = float("inf")  # even what is not a number stays at home
        after = varlen_attention(*changed, cu_seqlens, scale=0.3).detach()
    assert torch.equal(before[20:29], after[20:29])
    assert not torch.equal(before[:20], after[:20])


def test_training_on_short_documents_takes_the_bucketed_path(monkeypatch: pytest.MonkeyPatch):
    qkv, cu_seqlens, _ = case([20, 9], 2, 2)
    calls = []
    original = bucketed.bucketed_attention
    monkeypatch.setattr("lmworks.kernels.attention.bucketed_attention", lambda *a: calls.append(1) or original(*a))
    varlen_attention(*qkv, cu_seqlens, scale=0.3)
    with torch.no_grad():
        varlen_attention(*qkv, cu_seqlens, scale=0.3)
    varlen_attention(*qkv, cu_seqlens, scale=0.3, causal=False)
    assert len(calls) == 1
