"""8-bit state: the code, its error, its reference, and training with it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmworks.core.errors import CheckpointError
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig
from lmworks.optim.quantized_state import (
    BLOCK,
    ERROR_BOUND,
    dequantize_blocks,
    dynamic_code,
    quantize_blocks,
    quantize_blocks_reference,
    state_bytes,
)


def moments(signed: bool, seed: int, size: int = 1000) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=g) * 10 ** torch.empty(size).uniform_(-6, 0, generator=g)
    return values if signed else values**2


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_has_256_values_over_seven_decades(signed: bool):
    code = dynamic_code(signed)
    assert len(code) == len(set(code.tolist())) == 256
    assert float(code.max()) == 1.0
    assert 0.0 in code.tolist()
    assert float(code[code > 0].min()) < 1e-6
    assert float(code.diff().max()) / 2 == pytest.approx(ERROR_BOUND[signed], rel=0.2)


@pytest.mark.parametrize("signed", [True, False])
@given(seed=st.integers(0, 50), size=st.sampled_from([1, 255, 256, 257, 1000]))
def test_the_error_is_within_its_bound_and_equal_to_the_references(signed: bool, seed: int, size: int):
    values = moments(signed, seed, size)
    codes, scales = quantize_blocks(values, signed=signed)
    back = dequantize_blocks(codes, scales, signed=signed)
    limits = scales.repeat_interleave(BLOCK)[:size] * ERROR_BOUND[signed]
    assert ((back - values).abs() <= limits * (1 + 1e-5)).all()
    reference, same_scales = quantize_blocks_reference(values, signed=signed)
    assert torch.equal(scales, same_scales)
    # A value in the very middle may go either way.
    other = dequantize_blocks(reference, scales, signed=signed)
    torch.testing.assert_close((back - values).abs(), (other - values).abs(), rtol=1e-3, atol=1e-9)


def test_what_is_positive_never_becomes_zero():
    values = torch.tensor([1.0, 1e-9, 0.0, 1e-30])
    back = dequantize_blocks(*quantize_blocks(values, signed=False), signed=False)
    assert (back > 0).tolist() == [True, True, False, True]


def test_a_block_of_zeros_stays_zero():
    back = dequantize_blocks(*quantize_blocks(torch.zeros(300), signed=True), signed=True)
    assert back.eq(0).all()


def regression(kind: str, bits: int, steps: int = 150) -> tuple[float, CompositeOptimizer, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    inputs = torch.randn(256, 64)
    targets = torch.tanh(inputs @ torch.randn(64, 64) / 8)
    optimizer = CompositeOptimizer(model, OptimizerConfig(kind=kind, lr=3e-3, state_bits=bits, weight_decay=0))
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((model(inputs) - targets) ** 2).mean()
        loss.backward()
        optimizer.step(1 - step / steps)
    return float(loss.detach()), optimizer, model


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon", "lamb"])
def test_training_loses_nothing(kind: str):
    exact, full, _ = regression(kind, 32)
    rounded, eight, _ = regression(kind, 8)
    assert rounded < max(1.15 * exact, exact + 1e-3)
    # A byte an entry and four for 256; float32 vectors.
    assert state_bytes(eight.state_dict()) < 0.30 * state_bytes(full.state_dict())


def test_small_parameters_and_counters_stay_exact():
    _, optimizer, _ = regression("adamw", 8, steps=2)
    state = optimizer.state_dict()
    assert {k.rpartition(".")[2] for k in state if k.startswith("0.bias")} == {"step", "exp_avg", "exp_avg_sq"}
    assert state["0.weight.exp_avg_codes"].dtype == torch.uint8
    assert state["0.weight.exp_avg_codes"].shape == (64, 64)
    assert state["0.weight.exp_avg_sq_scales"].shape == (16,)
    assert float(state["0.weight.step"]) == 2


def test_state_of_other_bits_is_refused():
    _, eight, model = regression("adamw", 8, steps=1)
    full = CompositeOptimizer(model, OptimizerConfig(kind="adamw"))
    with pytest.raises(CheckpointError, match="exp_avg_codes"):
        full.load_state_dict(eight.state_dict())


def test_a_failing_update_leaves_the_groups_whole():
    _, optimizer, model = regression("adamw", 8, steps=1)
    groups = [len(g["params"]) for o in optimizer.optimizers for g in o.param_groups]
    model[0].weight.grad = torch.ones(64, 64).to_sparse()
    with pytest.raises(RuntimeError):
        optimizer.step(1.0)
    assert [len(g["params"]) for o in optimizer.optimizers for g in o.param_groups] == groups
