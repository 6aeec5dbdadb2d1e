"""Every optimizer by name: torch's own, and ours against the formulas of their papers."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.optim.algorithms import ALGORITHMS
from lmworks.optim.lamb import Lamb
from lmworks.optim.lion import Lion
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig
from lmworks.optim.param_groups import parameter_roles
from lmworks.optim.soap import Soap
from lmworks.proofs.tiny import tiny_model


def gradients(shape: tuple[int, ...], steps: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for _ in range(steps)]


def run(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, grads: list[torch.Tensor]) -> torch.Tensor:
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


def set_gradients(model: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


def test_lion_follows_its_paper():
    parameter = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    expected, momentum = parameter.detach().clone().double(), torch.zeros(5, 3).double()
    grads = gradients((5, 3), 4)
    for grad in grads:
        direction = (0.8 * momentum + 0.2 * grad).sign()
        expected = expected - 0.01 * (direction + 0.3 * expected)
        momentum = 0.95 * momentum + 0.05 * grad
    ours = run(Lion([parameter], lr=0.01, betas=(0.8, 0.95), weight_decay=0.3), parameter, grads)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_lamb_follows_its_paper():
    parameter = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    expected = parameter.detach().clone().double()
    m, v = torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    grads = gradients((5, 3), 4)
    for t, grad in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * grad, 0.98 * v + 0.02 * grad.double() ** 2
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-6) + 0.3 * expected
        expected = expected - 0.01 * expected.norm() / r.norm() * r
    ours = run(Lamb([parameter], lr=0.01, betas=(0.9, 0.98), weight_decay=0.3), parameter, grads)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_lamb_moves_parameters_that_begin_at_zero():
    parameter = nn.Parameter(torch.zeros(4))
    assert run(Lamb([parameter], lr=0.01), parameter, [torch.ones(4)]).tolist() == pytest.approx([-0.01] * 4, rel=1e-4)


def test_soap_turns_with_its_gradients():
    # Adam depends on the basis that a matrix is written in; SOAP finds its own.
    g = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g))[0] for n in (6, 6))
    grads = gradients((6, 6), 12)
    moved = {}
    for turned in (False, True):
        parameter = nn.Parameter(torch.zeros(6, 6))
        soap = Soap([parameter], lr=0.01, betas=(0.9, 0.9), precondition_frequency=3)
        moved[turned] = run(soap, parameter, [left @ grad @ right if turned else grad for grad in grads])
    torch.testing.assert_close(moved[True], left @ moved[False] @ right, rtol=1e-3, atol=1e-5)


def test_soap_in_the_standard_basis_is_adamw():
    grads = gradients((6, 4), 5)
    ours, theirs = (nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    soap = Soap([ours], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, max_precond_dim=3)
    assert run(soap, ours, grads[:1]).eq(1).all()  # the first only sets the basis
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    torch.testing.assert_close(run(soap, ours, grads[1:]), run(adamw, theirs, grads[1:]), rtol=1e-5, atol=1e-6)


def test_soap_takes_no_vectors():
    with pytest.raises(ConfigError, match=r"matrices, and a parameter has shape \(3,\)"):
        Soap([nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("sgd", lambda p, decay: torch.optim.SGD(p, lr=0.01, momentum=0.8, weight_decay=decay)),
        ("adam", lambda p, decay: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), weight_decay=decay)),
        ("adafactor", lambda p, decay: torch.optim.Adafactor(p, lr=0.01, weight_decay=decay)),
    ],
)
def test_torchs_own_are_torchs_own(kind: str, make):
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    config = OptimizerConfig(kind=kind, lr=0.01, momentum=0.8, betas=(0.8, 0.9), weight_decay=0.2)
    optimizer = CompositeOptimizer(ours, config)
    roles, named = parameter_roles(theirs), dict(theirs.named_parameters())
    oracles = [
        make([p for name, p in named.items() if (roles[name] in ("matrix", "head")) is decayed], 0.2 * decayed)
        for decayed in (True, False)
    ]
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step(1.0)
        for oracle in oracles:
            oracle.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("kind", "bits"), [*product(sorted(ALGORITHMS), [32]), *product(sorted(ALGORITHMS.keys() - {"adafactor"}), [8])]
)
def test_every_state_moves_to_another_optimizer_bit_for_bit(kind: str, bits: int):
    config = OptimizerConfig(kind=kind, lr=1e-3, state_bits=bits)
    first, second = tiny_model("llama"), tiny_model("llama", seed=1)
    one, other = CompositeOptimizer(first, config), CompositeOptimizer(second, config)
    for step in range(12):  # past a change of SOAP's basis
        if step == 2:
            second.load_state_dict(first.state_dict())
            other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
        set_gradients(first, step)
        set_gradients(second, step)
        one.step(1.0)
        other.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(isinstance(v, torch.Tensor) for v in one.state_dict().values())


@pytest.mark.parametrize("kind", sorted(ALGORITHMS))
def test_every_optimizer_finds_the_minimum_of_a_bowl(kind: str):
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    nn.init.uniform_(model.weight, -0.35, 0.35, generator=g)
    target = torch.randn(8, 8, generator=g)
    lr = {"sgd": 0.02, "adafactor": 0.3, "lion": 0.1, "lamb": 0.1, "muon": 0.05}.get(kind, 0.1)
    config = OptimizerConfig(kind=kind, lr=lr, matrix_lr=0.2 if kind == "muon" else None, weight_decay=0)
    optimizer = CompositeOptimizer(model, config)
    begin = float((model.weight - target).detach().norm())
    for step in range(120):
        optimizer.zero_grad()
        ((model.weight - target) ** 2).sum().backward()
        optimizer.step(1 - step / 120)
    assert float((model.weight - target).detach().norm()) < 0.1 * begin


def test_sgd_without_momentum_keeps_no_state():
    model = tiny_model("llama")
    optimizer = CompositeOptimizer(model, OptimizerConfig(kind="sgd", momentum=0.0))
    set_gradients(model, 0)
    optimizer.step(1.0)
    assert optimizer.state_dict() == {}
    optimizer.load_state_dict({})


def test_the_state_of_another_algorithm_is_refused():
    model = tiny_model("llama")
    lion, lamb = (CompositeOptimizer(model, OptimizerConfig(kind=kind)) for kind in ("lion", "lamb"))
    set_gradients(model, 0)
    lion.step(1.0)
    with pytest.raises(CheckpointError, match="exp_avg_sq"):
        lamb.load_state_dict(lion.state_dict())


def test_experts_and_their_biases_have_roles_of_their_own():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = nn.Parameter(torch.zeros(3, 4, 5))
            self.down_proj_bias = nn.Parameter(torch.zeros(3, 4))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

    roles = parameter_roles(Layer())
    assert roles == {"experts.down_proj": "experts", "experts.down_proj_bias": "vector"}
    optimizer = CompositeOptimizer(Layer(), OptimizerConfig(kind="muon", lr=0.01, matrix_lr=0.5))
    groups = {tuple(g["params"][0].shape): g for o in optimizer.optimizers for g in o.param_groups}
    assert groups[3, 4, 5]["lr"] == 0.01
    assert groups[3, 4, 5]["weight_decay"] == 0.1
    assert groups[3, 4]["weight_decay"] == 0.0


def test_adafactor_in_eight_bits_is_refused():
    with pytest.raises(ConfigError, match="factored state"):
        OptimizerConfig.parse({"kind": "adafactor", "state_bits": 8})


def test_math_of_the_default_rates():
    assert math.isclose(OptimizerConfig(kind="lion", lr=1e-4).peak_matrix_lr, 1e-4)
    assert OptimizerConfig(kind="soap", matrix_lr=0.1).peak_matrix_lr == 0.1
