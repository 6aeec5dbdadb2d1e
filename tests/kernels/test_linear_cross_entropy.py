"""The chunked head and loss against the formula: values, gradients, skipped rows, types."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def case(n: int, *, hidden: int = 12, vocab: int = 37, dtype: torch.dtype = torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, hidden, generator=g).to(dtype).requires_grad_()
    w = torch.randn(vocab, hidden, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (n,), generator=g)
    weights = torch.rand(n, generator=g) * (torch.rand(n, generator=g) > 0.3)
    return x, w, targets, weights


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 99))
def test_loss_and_gradients_equal_the_formula_for_any_chunking(n: int, chunk: int, seed: int):
    ours, oracle = case(n, seed=seed), case(n, seed=seed)
    loss = linear_cross_entropy(*ours, chunk_tokens=chunk)
    expected = linear_cross_entropy_reference(*oracle)
    (loss * 0.37).backward()
    (expected * 0.37).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours[:2], oracle[:2], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [True, False])
def test_bias_and_soft_cap_equal_the_formula(biased: bool, softcap: float | None):
    grads = []
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        x, w, targets, weights = case(23)
        bias = torch.randn(37, generator=torch.Generator().manual_seed(1)).requires_grad_() if biased else None
        loss = function(x, w, targets, weights, bias=bias, softcap=softcap)
        loss.backward()
        grads.append([loss.detach(), x.grad, w.grad, *([bias.grad] if bias is not None else [])])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_rows_of_weight_zero_are_not_read():
    x, w, targets, weights = case(9)
    weights[4] = 0.0
    with torch.no_grad():
        x[4] = float("nan")
    loss = linear_cross_entropy(x, w, targets, weights, chunk_tokens=4)
    loss.backward()
    assert loss.isfinite()
    assert w.grad is not None
    assert w.grad.isfinite().all()
    assert x.grad is not None
    assert (x.grad[4] == 0).all()


def test_no_weighted_row_gives_zero_loss_and_zero_gradients():
    x, w, targets, _ = case(5)
    loss = linear_cross_entropy(x, w, targets, torch.zeros(5))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert not x.grad.any()
    assert w.grad is not None
    assert not w.grad.any()


def test_bfloat16_activations_sum_in_float32():
    x, w, targets, _ = case(600, hidden=64, vocab=200, dtype=torch.bfloat16)
    weights = torch.ones(600)
    wide = [t.detach().float().requires_grad_() for t in (x, w)]
    loss = linear_cross_entropy(x, w, targets, weights, chunk_tokens=64)
    expected = linear_cross_entropy_reference(wide[0], wide[1], targets, weights)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - expected) / expected < 2e-3
    for mine, theirs in zip((x, w), wide, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == torch.bfloat16
        assert theirs.grad is not None
        assert (mine.grad.float() - theirs.grad).norm() / theirs.grad.norm() < 1e-2


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_a_frozen_input_gets_no_gradient(frozen: str):
    x, w, targets, weights = case(7)
    x.requires_grad_(frozen == "weight")
    w.requires_grad_(frozen == "hidden")
    loss = linear_cross_entropy(x, w, targets, weights)
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    assert (x.grad is None) == (frozen != "weight")
    assert (w.grad is None) == (frozen != "hidden")


def test_the_logits_of_all_tokens_never_exist():
    n, vocab = 2048, 512
    x, w, targets, _ = case(n, hidden=8, vocab=vocab)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        linear_cross_entropy(x, w, targets, torch.ones(n), chunk_tokens=128).backward()
    assert max(sizes) <= 128 * vocab


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.01, 0.0), (0.0, 0.2), (0.02, 0.1), (0.0, 0.99)])
def test_z_loss_and_label_smoothing_equal_the_formula(z_loss: float, label_smoothing: float, softcap: float | None):
    grads = []
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        x, w, targets, weights = case(23)
        bias = torch.randn(37, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = function(
            x, w, targets, weights, bias=bias, softcap=softcap, z_loss=z_loss, label_smoothing=label_smoothing
        )
        loss.backward()
        grads.append([loss.detach(), x.grad, w.grad, bias.grad])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_both_by_hand():
    logits = torch.tensor([1.0, 2.0, 4.0])
    args = (torch.ones(1, 1), logits[:, None], torch.tensor([1]), torch.ones(1))
    log_z = float(logits.logsumexp(0))
    assert linear_cross_entropy(*args).item() == pytest.approx(log_z - 2, rel=1e-6)
    assert linear_cross_entropy(*args, z_loss=0.1).item() == pytest.approx(log_z - 2 + 0.1 * log_z**2, rel=1e-6)
    smoothed = 0.7 * (log_z - 2) + 0.3 * (log_z - 7 / 3)
    assert linear_cross_entropy(*args, label_smoothing=0.3).item() == pytest.approx(smoothed, rel=1e-6)


def operations(**settings) -> list[str]:
    """Names of all tensor operations of a forward pass."""
    names = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    inputs = case(5)
    with Watch():
        linear_cross_entropy(*inputs, **settings)
    return names


def test_what_is_not_asked_for_costs_nothing():
    assert not {"aten.mean.dim", "aten.pow.Tensor_Scalar"} & set(operations())
    assert "aten.pow.Tensor_Scalar" in operations(z_loss=0.1)
    assert "aten.mean.dim" in operations(label_smoothing=0.1)
