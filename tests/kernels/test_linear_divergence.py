"""Chunked divergences against the formula: values, gradients, skipped rows, ends of the range, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.kernels.linear_divergence import linear_divergence, linear_divergence_reference

BETAS = [0.0, 0.3, 0.5, 1.0]


def case(n, *, vocab=37, seed=0, dtype=torch.float32, size=1.0):
    g = torch.Generator().manual_seed(seed)
    x, w = (size * torch.randn(*s, generator=g) for s in ((n, 12), (vocab, 12)))
    taught, teacher = torch.randn(n, 8, generator=g), size * torch.randn(vocab, 8, generator=g)
    weights = torch.rand(n, generator=g) * (torch.rand(n, generator=g) > 0.3)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), taught.to(dtype), teacher.to(dtype), weights


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), chunk=st.integers(1, 50), beta=st.floats(0, 1), temperature=st.floats(0.5, 4))
def test_loss_and_gradients_equal_the_formula_for_any_chunking(n, chunk, beta, temperature):
    ours, oracle = case(n), case(n)
    loss = linear_divergence(*ours, beta=beta, temperature=temperature, chunk_tokens=chunk)
    expected = linear_divergence_reference(*oracle, beta=beta, temperature=temperature)
    (loss * 0.37).backward()
    (expected * 0.37).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(ours[:2], oracle[:2], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_biases_and_soft_caps_equal_the_formula(beta, softcap):
    grads = []
    for function in (linear_divergence, linear_divergence_reference):
        inputs = case(23)
        biases = [torch.randn(37, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (1, 2)]
        loss = function(
            *inputs, bias=biases[0], teacher_bias=biases[1].detach(), softcap=softcap, teacher_softcap=2.0, beta=beta
        )
        loss.backward()
        grads.append([loss.detach(), inputs[0].grad, inputs[1].grad, biases[0].grad])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_who_says_the_same_has_no_loss_and_no_gradient(beta):
    x, w, *_, weights = case(9)
    loss = linear_divergence(x, w, x.detach(), w.detach(), weights, beta=beta)
    loss.backward()
    assert abs(loss) < 1e-4
    assert x.grad.abs().max() < 1e-5


def test_by_hand():
    hidden, taught = torch.tensor([[1.0]]), torch.tensor([[1.0]])
    q, p = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    value = {
        beta: float(linear_divergence(hidden, q.log()[:, None], taught, p.log()[:, None], torch.ones(1), beta=beta))
        for beta in (0.0, 0.5, 1.0)
    }
    assert value[0.0] == pytest.approx(0.130812, abs=1e-6)  # 3/4 ln(3/2) + 1/4 ln(1/2)
    assert value[1.0] == pytest.approx(0.143841, abs=1e-6)  # 1/2 ln(2/3) + 1/2 ln 2
    assert value[0.5] == pytest.approx(0.033822, abs=1e-6)  # half the sum of both to (5/8, 3/8)


@pytest.mark.parametrize("beta", BETAS)
def test_certainties_stay_finite(beta):
    ours = case(7, size=200.0)
    loss = linear_divergence(*ours, beta=beta)
    loss.backward()
    assert loss.isfinite()
    assert all(t.grad.isfinite().all() for t in ours[:2])


def test_rows_of_weight_zero_are_not_read():
    x, w, taught, teacher, weights = case(9)
    weights[4] = 0.0
    with torch.no_grad():
        x[4] = float("nan")
        taught[4] = float("nan")
    loss = linear_divergence(x, w, taught, teacher, weights, chunk_tokens=4)
    loss.backward()
    assert loss.isfinite()
    assert w.grad.isfinite().all()
    assert (x.grad[4] == 0).all()
    nothing = linear_divergence(x, w, taught, teacher, torch.zeros(9))
    assert nothing == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_a_frozen_input_gets_no_gradient(frozen):
    x, w, *rest = case(7)
    x.requires_grad_(frozen == "weight")
    w.requires_grad_(frozen == "hidden")
    loss = linear_divergence(x, w, *rest)
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    assert (x.grad is None) == (frozen != "weight")
    assert (w.grad is None) == (frozen != "hidden")


def test_bfloat16_activations_sum_in_float32():
    ours = case(300, vocab=200, dtype=torch.bfloat16)
    wide = [t.detach().float().requires_grad_() for t in ours[:4]]
    loss = linear_divergence(*ours, chunk_tokens=64)
    expected = linear_divergence_reference(*wide, ours[4])
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert abs(loss - expected) / expected < 5e-3
    for mine, theirs in zip(ours[:2], wide[:2], strict=True):
        assert (mine.grad.float() - theirs.grad).norm() / theirs.grad.norm() < 1e-2


def test_the_logits_of_all_tokens_never_exist():
    n, vocab = 2048, 512
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    inputs = case(n, vocab=vocab)
    with Watch():
        linear_divergence(*inputs[:4], torch.ones(n), chunk_tokens=128).backward()
    assert max(sizes) <= 128 * vocab
