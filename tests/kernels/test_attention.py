"""Packed attention: every fast path against the formula, and no document sees another."""

import pytest
import torch

import lmworks.kernels.bucketed_attention as bucketed
from lmworks.kernels.attention import QUERY_TILE, varlen_attention, varlen_attention_reference
from lmworks.kernels.masks import Causal, First, Full, Window, self_attention_mask
from lmworks.kernels.scores import Scores

PLAIN = Scores(0.3)


def plain(causal: bool) -> Scores:
    return Scores(0.3, self_attention_mask(causal=causal))


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
    expected = varlen_attention_reference(*qkv, cu_seqlens, plain(causal))
    wanted = torch.autograd.grad(expected, qkv, grad)
    found = varlen_attention(*qkv, cu_seqlens, plain(causal))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(varlen_attention(*qkv, cu_seqlens, plain(causal)), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_the_float32_formula():
    qkv, cu_seqlens, grad = case(LENGTHS["ragged"], 4, 2, torch.bfloat16)
    wide = [t.detach().float().requires_grad_() for t in qkv]
    expected = varlen_attention_reference(*wide, cu_seqlens, PLAIN)
    found = varlen_attention(*qkv, cu_seqlens, PLAIN)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 1e-2
    wanted = torch.autograd.grad(expected, wide, grad.float())
    for mine, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted, strict=True):
        assert (mine.float() - theirs).norm() / theirs.norm() < 2e-2


@pytest.mark.parametrize("training", [True, False])
def test_a_document_does_not_feel_its_neighbors(training: bool):
    qkv, cu_seqlens, _ = case([20, 9, 30], 2, 2)
    with torch.set_grad_enabled(training):
        before = varlen_attention(*qkv, cu_seqlens, PLAIN).detach()
        changed = [t.detach().clone().requires_grad_() for t in qkv]
        with torch.no_grad():
            for t in changed:
                t[:20] = torch.randn(20, 2, 8) * 5
                t[29:] = float("inf")  # even what is not a number stays at home
        after = varlen_attention(*changed, cu_seqlens, PLAIN).detach()
    assert torch.equal(before[20:29], after[20:29])
    assert not torch.equal(before[:20], after[:20])


def test_training_on_short_documents_takes_the_bucketed_path(monkeypatch: pytest.MonkeyPatch):
    qkv, cu_seqlens, _ = case([20, 9], 2, 2)
    calls = []
    original = bucketed.bucketed_attention
    monkeypatch.setattr("lmworks.kernels.attention.bucketed_attention", lambda *a: calls.append(1) or original(*a))
    varlen_attention(*qkv, cu_seqlens, PLAIN)
    with torch.no_grad():
        varlen_attention(*qkv, cu_seqlens, PLAIN)
    varlen_attention(*qkv, cu_seqlens, plain(False))
    assert len(calls) == 1


def slopes(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return -torch.tensor([0.5, 0.1, 0.9])[:, None, None] * (query[:, None] - key[None, :]).abs()


RULES = {
    "window": Scores(0.3, Causal() & Window(5)),
    "window on both sides": Scores(0.3, Full() & Window(5)),
    "window and sinks of the first tokens": Scores(0.3, Causal() & (Window(5) | First(2))),
    "soft cap": Scores(0.3, softcap=2.0),
    "bias": Scores(0.3, bias=slopes),
    "bias on both sides": Scores(0.3, Full(), bias=slopes),
    "trained sinks": Scores(0.3, sinks=torch.tensor([0.5, -1.0, 2.0])),
    "everything": Scores(0.3, Causal() & Window(9), 3.0, slopes, torch.tensor([0.5, -1.0, 2.0])),
}


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("lengths", [[1, 33, 7], [20, 20], [QUERY_TILE + 17, 3]])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_the_formula(rule: str, lengths: list[int], prefixed: bool):
    qkv, cu_seqlens, grad = case(lengths, 3, 1)
    prefix = torch.tensor([n // 2 for n in lengths]) if prefixed else None
    expected = varlen_attention_reference(*qkv, cu_seqlens, RULES[rule], prefix_lengths=prefix)
    found = varlen_attention(*qkv, cu_seqlens, RULES[rule], prefix_lengths=prefix)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, qkv, grad)
    for mine, theirs in zip(torch.autograd.grad(found, qkv, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key_lengths", [[4, 9, 30], [6, 6, 6]])
def test_cross_attention_sees_all_of_its_own_source_and_no_other(key_lengths: list[int]):
    qkv, cu_seqlens, _ = case([5, 12, 5], 4, 2)
    keys, key_cu_seqlens, _ = case(key_lengths, 4, 2)
    attend = varlen_attention(qkv[0], keys[1], keys[2], cu_seqlens, PLAIN, key_cu_seqlens=key_cu_seqlens)
    formula = varlen_attention_reference(qkv[0], keys[1], keys[2], cu_seqlens, PLAIN, key_cu_seqlens=key_cu_seqlens)
    torch.testing.assert_close(attend, formula, rtol=1e-5, atol=1e-5)
    alone = varlen_attention(
        qkv[0][:5], keys[1][: key_lengths[0]], keys[2][: key_lengths[0]], torch.tensor([0, 5], dtype=torch.int32),
        Scores(0.3, Full()), key_cu_seqlens=torch.tensor([0, key_lengths[0]], dtype=torch.int32),
    )  # fmt: skip
    torch.testing.assert_close(attend[:5], alone, rtol=1e-5, atol=1e-5)


def test_a_trained_bias_gets_its_gradient():
    qkv, cu_seqlens, grad = case([9, 4], 3, 1)
    weight = torch.randn(3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rule = Scores(0.3, bias=lambda q, k: weight[:, None, None] * (q[:, None] - k[None, :]))
    gradients = [
        torch.autograd.grad(attend(*qkv, cu_seqlens, rule), weight, grad)[0]
        for attend in (varlen_attention, varlen_attention_reference)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
