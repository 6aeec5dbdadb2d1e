"""Clipping against torch's and against the formula of adaptive clipping; norms by parameter and layer."""

import math

import pytest
import torch
from torch import nn

from lmworks.optim.clipping import UNIT_EPS, ClippingConfig, clip_gradients, gradient_norms
from lmworks.proofs.tiny import tiny_model


def with_gradients(seed: int = 0, scale: float = 1.0) -> nn.Module:
    model = tiny_model("llama")
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g) * scale
    return model


def clip(model: nn.Module, **fields: object) -> None:
    clip_gradients(model, gradient_norms(model), ClippingConfig(**fields))


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def test_the_norm_equals_torchs():
    ours, theirs = with_gradients(), with_gradients()
    total = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert float(gradient_norms(ours).total) == pytest.approx(float(total), rel=1e-6)
    clip(ours, kind="norm", limit=0.5)
    for a, b in zip(grads(ours), grads(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["norm", "per_parameter", "adaptive"])
def test_small_gradients_keep_every_bit(kind: str):
    model = with_gradients(scale=1e-7)
    before = grads(model)
    clip(model, kind=kind, limit=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, grads(model), strict=True))


def test_each_parameter_to_its_own_norm():
    model = with_gradients()
    before = gradient_norms(model)
    clip(model, kind="per_parameter", limit=3.0)
    after = gradient_norms(model).by_name()
    assert after == pytest.approx({name: min(3.0, norm) for name, norm in before.by_name().items()}, rel=1e-5)


def test_each_unit_to_a_share_of_its_weights():
    model = with_gradients()
    with torch.no_grad():
        model.decoder.layers[0].mlp.down_proj.weight[0] = 0
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    clip(model, kind="adaptive", limit=0.1)
    for name, p in model.named_parameters():
        expected = before[name].double()
        if name != "lm_head.weight":
            for row, weights in zip(expected if p.ndim > 1 else [expected], p if p.ndim > 1 else [p], strict=True):
                most = 0.1 * max(UNIT_EPS, float(weights.detach().double().norm()))
                if float(row.norm()) > most:
                    row *= most / float(row.norm())
        torch.testing.assert_close(p.grad.double(), expected, rtol=1e-4, atol=1e-8, msg=name)


def test_norms_by_layer_add_up():
    norms = gradient_norms(with_gradients())
    layers = norms.by_layer()
    assert {"embed_tokens.weight", "decoder.layers.0", "decoder.layers.2", "decoder.norm.weight"} <= set(layers)
    assert math.hypot(*layers.values()) == pytest.approx(float(norms.total), rel=1e-5)


def test_a_non_finite_gradient_is_named():
    model = with_gradients()
    model.decoder.norm.weight.grad[0] = math.nan
    norms = gradient_norms(model)
    assert not math.isfinite(float(norms.total))
    assert [name for name, norm in norms.by_name().items() if not math.isfinite(norm)] == ["decoder.norm.weight"]


def test_no_gradients_have_no_norm():
    norms = gradient_norms(tiny_model("llama"))
    assert (norms.names, float(norms.total)) == ((), 0.0)
