"""Linear attention in parallel against the recurrence, and each approximation where it must be exact."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels.linear_attention import (
    elu_features,
    favor_features,
    linear_attention,
    linear_attention_reference,
    linear_attention_state,
    linear_attention_step,
    linformer_attention,
    orthogonal_projection,
    relu_features,
)

RAGGED = [1, 33, 7, 64, 32, 5]


def case(lengths: list[int], heads: int = 4, kv_heads: int = 2, dim: int = 8, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(0)
    n = sum(lengths)
    shapes = ((n, heads, dim), (n, kv_heads, dim), (n, kv_heads, dim))
    qkv = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return qkv, torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """One document, by torch."""
    qkv = (t.transpose(0, 1)[None] for t in (query, key, value))
    return F.scaled_dot_product_attention(*qkv, is_causal=causal, scale=scale, enable_gqa=True)[0].transpose(0, 1)


def same(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    grad = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, inputs, grad, retain_graph=True)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def favor(query: Tensor, key: Tensor, projection: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return (
        favor_features(query, projection, scale=scale, is_query=True),
        favor_features(key, projection, scale=scale, is_query=False),
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("features", [elu_features, relu_features])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_the_parallel_form_equals_the_recurrence(heads: int, kv_heads: int, features, causal: bool):
    qkv, cu_seqlens = case(RAGGED, heads, kv_heads)
    q, k = features(qkv[0]), features(qkv[1])
    expected = linear_attention_reference(q, k, qkv[2], cu_seqlens, causal=causal)
    for chunk_size in (1, 16, 128):
        found = linear_attention(q, k, qkv[2], cu_seqlens, causal=causal, chunk_size=chunk_size)
        grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, expected)
        wanted = torch.autograd.grad(expected, qkv, grad, retain_graph=True)
        for mine, theirs in zip(torch.autograd.grad(found, qkv, grad, retain_graph=True), wanted, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_attention_with_the_scores_of_the_features(causal: bool):
    (query, key, value), cu_seqlens = case([50], 2, 2)
    q, k = elu_features(query), elu_features(key)
    weights = torch.einsum("nhm,shm->hns", q, k)
    weights = weights.tril() if causal else weights
    expected = torch.einsum("hns,shd->nhd", weights / weights.sum(-1, keepdim=True), value)
    found = linear_attention(q, k, value, cu_seqlens, causal=causal, chunk_size=16)
    same(found, expected, [query, key, value])


def test_decoding_goes_on_from_the_parallel_form():
    """Two sequences of different lengths are prefilled packed and then decoded together."""
    (query, key, value), _ = case([60])
    q, k = elu_features(query), elu_features(key)
    whole = linear_attention(q, k, value, torch.tensor([0, 30, 60], dtype=torch.int32))
    prompts = torch.cat((torch.arange(20), torch.arange(30, 45)))
    cu_seqlens = torch.tensor([0, 20, 35], dtype=torch.int32)
    state = linear_attention_state(k[prompts], value[prompts], cu_seqlens)
    assert state.shape == (2, 2, 8, 9)
    for step in range(10):
        now = torch.tensor([20 + step, 45 + step])
        out, state = linear_attention_step(q[now], k[now], value[now], state)
        torch.testing.assert_close(out, whole[now])


def test_a_query_that_meets_no_key_gives_zero_and_finite_gradients():
    query, key = torch.full((3, 1, 4), -1.0, requires_grad=True), torch.ones(3, 1, 4, requires_grad=True)
    value, cu_seqlens = torch.randn(3, 1, 4, requires_grad=True), torch.tensor([0, 3], dtype=torch.int32)
    out = linear_attention(relu_features(query), relu_features(key), value, cu_seqlens)
    assert torch.equal(out, torch.zeros_like(out))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (query, key, value)))


@pytest.mark.parametrize("causal", [True, False])
def test_performer_converges_to_softmax_attention(causal: bool):
    qkv, cu_seqlens = case([96], dim=16)
    query, key, value = (t.detach() / 2 for t in qkv)  # the error grows with exp(scale · ‖q + k‖²)
    exact = softmax_attention(query, key, value, 0.25, causal)

    def error(num_features: int) -> float:
        """Mean over seeds, as one draw is noisy."""
        total = 0.0
        for seed in range(4):
            q, k = favor(query, key, orthogonal_projection(num_features, 16, seed=seed), 0.25)
            total += float((linear_attention(q, k, value, cu_seqlens, causal=causal) - exact).norm() / exact.norm())
        return total / 4

    errors = [error(m) for m in (16, 64, 256, 1024, 4096)]
    assert all(a > b for a, b in itertools.pairwise(errors))
    slope = math.log(errors[-1] / errors[1]) / math.log(4096 / 64)
    assert -0.65 < slope < -0.35  # a mean of M samples: M^-1/2
    assert errors[-1] < 0.06


def test_performer_is_unbiased_and_varies_less_than_with_independent_directions():
    (query, key, _), _ = case([20], 1, 1, dim=16)
    q, k = query[:, 0].detach() / 2, key[:, 0].detach() / 2
    exact = (q @ k.T * 0.25).exp()

    def error(projection: Tensor) -> Tensor:
        # Features of keys are not divided by a maximum, so both sides are taken as keys.
        left, right = (favor_features(x, projection, scale=0.25, is_query=False) for x in (q, k))
        return left @ right.T - exact

    assert error(orthogonal_projection(100_000, 16)).norm() / exact.norm() < 0.01
    g = torch.Generator().manual_seed(0)
    orthogonal = sum(error(orthogonal_projection(16, 16, seed=seed)).square().mean() for seed in range(400))
    independent = sum(error(torch.randn(16, 16, generator=g)).square().mean() for _ in range(400))
    assert orthogonal < 0.9 * independent


def test_projections_are_orthogonal_and_seeded():
    projection = orthogonal_projection(40, 16, seed=1)
    assert projection.shape == (40, 16)
    assert torch.equal(projection, orthogonal_projection(40, 16, seed=1))
    assert not torch.equal(projection, orthogonal_projection(40, 16, seed=2))
    for block in projection.split(16):
        directions = F.normalize(block, dim=-1)
        torch.testing.assert_close(directions @ directions.T, torch.eye(len(block)), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="num_features=0"):
        orthogonal_projection(0, 16)


def test_large_vectors_do_not_overflow_the_features():
    (query, key, value), cu_seqlens = case([30], dtype=torch.float32, dim=64)
    q, k = favor(10 * query, 2 * key, orthogonal_projection(64, 64), 0.125)
    out = linear_attention(q, k, value, cu_seqlens)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (query, key, value)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2)])
def test_linformer_with_identity_projections_is_dense_attention(heads: int, kv_heads: int):
    qkv, cu_seqlens = case([40], heads, kv_heads)
    identity = torch.eye(40, dtype=torch.float64)
    found = linformer_attention(*qkv, cu_seqlens, identity, identity, scale=0.3)
    same(found, softmax_attention(*qkv, 0.3, causal=False), qkv)


def test_linformer_mixes_each_document_alone_and_trains_its_projections():
    qkv, cu_seqlens = case(RAGGED)
    g = torch.Generator().manual_seed(2)
    projections = [torch.randn(6, 64, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]
    found = linformer_attention(*qkv, cu_seqlens, *projections, scale=0.3)
    outputs = []
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        q, k, v = (t[start:end] for t in qkv)
        mixed_k = torch.stack([projections[0][:, : end - start] @ k[:, h] for h in range(2)], 1)
        mixed_v = torch.stack([projections[1][:, : end - start] @ v[:, h] for h in range(2)], 1)
        outputs.append(softmax_attention(q, mixed_k, mixed_v, 0.3, causal=False))
    same(found, torch.cat(outputs), [*qkv, *projections])


def test_linformer_refuses_a_document_beyond_its_projections():
    qkv, cu_seqlens = case([3, 9])
    with pytest.raises(ConfigError, match=r"9 tokens exceeds the 8"):
        linformer_attention(*qkv, cu_seqlens, torch.eye(8).double(), torch.eye(8).double(), scale=1.0)


def test_a_document_does_not_feel_its_neighbors():
    qkv, cu_seqlens = case([20, 9, 30])
    qkv = [t.detach() for t in qkv]
    changed = [t.clone() for t in qkv]
    for t in changed:
        t[:20] = 3.0
        t[29:] = float("nan")
    projection = torch.randn(4, 30, dtype=torch.float64)

    def every(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        q, k = elu_features(query), elu_features(key)
        return [
            linear_attention(q, k, value, cu_seqlens, chunk_size=4),
            linear_attention(q, k, value, cu_seqlens, chunk_size=4, causal=False),
            linformer_attention(query, key, value, cu_seqlens, projection, projection, scale=0.3),
        ]

    for before, after in zip(every(*qkv), every(*changed), strict=True):
        assert torch.equal(before[20:29], after[20:29])


@pytest.mark.parametrize("causal", [True, False])
def test_an_empty_document_changes_nothing(causal: bool):
    (query, key, value), cu_seqlens = case([5, 7])
    q, k, empty = elu_features(query), elu_features(key), torch.tensor([0, 0, 5, 5, 12], dtype=torch.int32)
    for attention in (linear_attention, linear_attention_reference):
        found, expected = (attention(q, k, value, c, causal=causal) for c in (empty, cu_seqlens))
        assert torch.equal(found, expected)
    mixed = [
        linformer_attention(query, key, value, c, *[torch.ones(2, 7).double()] * 2, scale=1)
        for c in (empty, cu_seqlens)
    ]
    assert torch.equal(*mixed)
    state = linear_attention_state(k, value, empty)
    assert not state[0].any()
    torch.testing.assert_close(state[[1, 3]], linear_attention_state(k, value, cu_seqlens))


def test_bfloat16_is_summed_in_float32():
    (query, key, value), cu_seqlens = case(RAGGED, dtype=torch.bfloat16)
    q, k = elu_features(query), elu_features(key)
    found = linear_attention(q, k, value, cu_seqlens)
    expected = linear_attention(q.float(), k.float(), value.float(), cu_seqlens)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 3e-3
