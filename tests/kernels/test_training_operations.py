"""The native operations of training against formulas in float64: values, gradients, odd sizes, threads."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.kernels.attention import varlen_attention, varlen_attention_reference
from lmworks.kernels.causal_attention import causal_attention
from lmworks.kernels.gated_activation import gated
from lmworks.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from lmworks.kernels.masks import Causal
from lmworks.kernels.native.training import training_library, trains_natively
from lmworks.kernels.rms_norm import rms_norm, rms_norm_reference
from lmworks.kernels.rotary import rotate
from lmworks.kernels.scores import Scores
from lmworks.nn.rope import inverse_frequencies, rotation

pytestmark = pytest.mark.skipif(training_library() is None, reason="no compiler, or no AVX-512 with bfloat16")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


def gradients(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    result = function(*leaves)
    return [result, *torch.autograd.grad(result, leaves, grad.to(result.dtype))]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "lengths"),
    [
        (2, 2, 64, (5, 64, 65, 130, 1)),  # below, at and above a tile
        (4, 2, 32, (70,)),
        (6, 2, 96, (40, 129)),
        (2, 1, 128, (100,)),
    ],
)
def test_attention_and_its_gradients_are_the_formulas(heads, kv_heads, width, lengths):
    tokens = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    inputs = [drawn(tokens, h, width, seed=i) for i, h in enumerate((heads, kv_heads, kv_heads))]
    grad, scores = drawn(tokens, heads, width, seed=3), Scores(width**-0.5, Causal())
    found = gradients(lambda q, k, v: causal_attention(q, k, v, bounds, scores.scale), inputs, grad)
    expected = gradients(
        lambda q, k, v: varlen_attention_reference(q, k, v, bounds, scores), [t.double() for t in inputs], grad
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert error(mine, theirs) < 4e-3


def test_attention_takes_views_and_is_chosen_for_training_alone():
    bounds = torch.tensor([0, 70, 90], dtype=torch.int32)
    stacked = drawn(90, 3, 2, 64).requires_grad_()
    scores = Scores(0.125, Causal())
    out = varlen_attention(*stacked.unbind(1), bounds, scores)
    assert "CausalAttention" in type(out.grad_fn).__name__
    torch.testing.assert_close(out, varlen_attention(*(t.contiguous() for t in stacked.unbind(1)), bounds, scores))
    odd = drawn(90, 2, 48).requires_grad_()
    assert "CausalAttention" not in type(varlen_attention(odd, odd, odd, bounds, scores).grad_fn).__name__


def test_attention_of_large_scores_stays_finite():
    bounds = torch.tensor([0, 100], dtype=torch.int32)
    inputs = [60 * drawn(100, 2, 64, seed=1), 60 * drawn(100, 2, 64, seed=2), drawn(100, 2, 64, seed=3)]
    grad = drawn(100, 2, 64, seed=4)
    found = gradients(lambda q, k, v: causal_attention(q, k, v, bounds, 0.125), inputs, grad)
    assert all(t.isfinite().all() for t in found)
    expected = varlen_attention_reference(*(t.double() for t in inputs), bounds, Scores(0.125, Causal()))
    assert error(found[0], expected) < 1e-2


@pytest.mark.parametrize("shape", [(3, 16), (130, 40), (2, 5, 96), (0, 32)])
def test_norm_and_its_gradients_are_the_formulas(shape):
    inputs, grad = [3 * drawn(*shape), 1 + 0.3 * drawn(shape[-1], seed=1)], drawn(*shape, seed=2)
    found = gradients(lambda x, w: rms_norm(x, w, 1e-5), inputs, grad)
    expected = gradients(lambda x, w: rms_norm_reference(x, w, 1e-5), [t.double() for t in inputs], grad)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert not theirs.numel() or not theirs.any() or error(mine, theirs) < 6e-3


@pytest.mark.parametrize("shape", [(7, 33), (300, 64), (0, 8)])
def test_gated_activation_and_its_gradients_are_the_formulas(shape):
    inputs, grad = [4 * drawn(*shape), drawn(*shape, seed=1)], drawn(*shape, seed=2)
    found = gradients(lambda g, u: gated(g, u, "silu"), inputs, grad)
    expected = gradients(lambda g, u: F.silu(g) * u, [t.double() for t in inputs], grad)
    for mine, theirs in zip(found, expected, strict=True):
        assert not theirs.numel() or error(mine, theirs) < 4e-3


def test_gated_activation_saturates_without_overflow():
    extremes = torch.tensor([[-3e38, -200.0, -0.0, 0.0, 200.0, 3e38]]).bfloat16().requires_grad_()
    out = gated(extremes, torch.ones(1, 6).bfloat16(), "silu")
    out.sum().backward()
    assert out.tolist()[0][1:4] == [0.0, 0.0, 0.0]
    assert extremes.grad is not None
    torch.testing.assert_close(extremes.grad, torch.tensor([[0, 0, 0.5, 0.5, 1, 1]]).bfloat16())


@pytest.mark.parametrize("turned", [64, 48, 20])
def test_rotation_and_its_gradient_are_the_formulas(turned):
    turn = rotation(torch.arange(70), inverse_frequencies(turned, 10_000.0), torch.bfloat16)
    inputs, grad = [drawn(70, 3, 64)], drawn(70, 3, 64, seed=1)

    def formula(x: Tensor) -> Tensor:
        first, second = x[..., : turned // 2], x[..., turned // 2 : turned]
        across = torch.cat([-second, first], -1)
        return torch.cat([x[..., :turned] * turn.cos + across * turn.sin, x[..., turned:]], -1)

    found = gradients(lambda x: rotate(x, turn.cos, turn.sin), inputs, grad)
    expected = gradients(formula, [inputs[0].double()], grad)
    for mine, theirs in zip(found, expected, strict=True):
        assert error(mine, theirs) < 3e-3


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.1)])
@pytest.mark.parametrize("vocab", [37, 256])
def test_cross_entropy_and_its_gradients_are_the_formulas(vocab, z_loss, smoothing):
    generator = torch.Generator().manual_seed(5)
    targets, scales = torch.randint(vocab, (90,), generator=generator), torch.rand(90, generator=generator)
    inputs, options = [drawn(90, 24), drawn(vocab, 24, seed=1)], {"z_loss": z_loss, "label_smoothing": smoothing}
    one = torch.ones(())
    found = gradients(lambda x, w: linear_cross_entropy(x, w, targets, scales, chunk_tokens=32, **options), inputs, one)
    expected = gradients(
        lambda x, w: linear_cross_entropy_reference(x, w, targets, scales, **options), [t.float() for t in inputs], one
    )
    assert error(found[0], expected[0].double()) < 1e-3
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert error(mine, theirs.double()) < 8e-3


def test_results_are_the_same_bits_for_any_number_of_threads():
    bounds = torch.tensor([0, 130, 200, 263], dtype=torch.int32)
    inputs, grad = [drawn(263, 4, 32, seed=i) for i in range(3)], drawn(263, 4, 32, seed=3)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            attended = gradients(lambda q, k, v: causal_attention(q, k, v, bounds, 0.2), inputs, grad)
            found.append([*attended, *gradients(lambda x, w: rms_norm(x, w, 1e-5), [inputs[0], drawn(32)], grad)])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_other_types_and_subclasses_are_left_to_torch():
    assert trains_natively(drawn(2))
    assert not trains_natively(drawn(2), torch.ones(2))
    assert not trains_natively(drawn(2).to("meta"))


def test_operations_declare_themselves_truly():
    x, bounds = drawn(70, 2, 32), torch.tensor([0, 70], dtype=torch.int32)
    operations = torch.ops.lmworks
    out, log_sums = operations.causal_attention(x, x, x, bounds, 0.2)
    cases = [
        (operations.causal_attention, (x, x, x, bounds, 0.2)),
        (operations.causal_attention_backward, (x, x, x, x, out, log_sums, bounds, 0.2)),
        (operations.rms_norm, (x, drawn(32), 1e-5)),
        (operations.rms_norm_backward, (x, x, drawn(32), torch.ones(140))),
        (operations.silu_gated, (x, x)),
        (operations.silu_gated_backward, (x, x, x)),
        (operations.rotate, (x, drawn(70, 1, 32), drawn(70, 1, 32), 1.0)),
        (operations.cross_entropy_, (drawn(4, 30), torch.arange(4), torch.ones(4), 0.0, 0.0, True)),
    ]
    for operation, arguments in cases:
        torch.library.opcheck(operation.default, arguments, test_utils=("test_schema", "test_faketensor"))
