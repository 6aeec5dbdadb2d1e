"""States in host memory: the same bits as without, the same state dict, and a resume."""

import pytest
import torch
from torch import nn

from lmworks.core.errors import ConfigError
from lmworks.optim import offload
from lmworks.optim.offload import OffloadedState, travels
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(60, 40), nn.Linear(40, 40), nn.Linear(40, 60))


def update(network: nn.Module, optimizer: CompositeOptimizer, step: int) -> None:
    torch.manual_seed(step)
    network(torch.randint(0, 60, (9,))).square().mean().backward()
    optimizer.step(1.0)
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor", "lion", "lamb", "soap", "sgd"])
def test_updates_are_the_same_bits(kind: str) -> None:
    plain, offloaded = model(), model()
    optimizers = [
        CompositeOptimizer(network, OptimizerConfig(kind=kind, lr=1e-2, offload_state=where))
        for network, where in ((plain, False), (offloaded, True))
    ]
    for step in range(4):
        update(plain, optimizers[0], step)
        update(offloaded, optimizers[1], step)
    states = [optimizer.state_dict() for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), offloaded.parameters(), strict=True))


def test_a_resumed_optimizer_goes_on_in_the_same_bits() -> None:
    config = OptimizerConfig(kind="adamw", offload_state=True)
    straight, cut = model(), model()
    first, second = CompositeOptimizer(straight, config), CompositeOptimizer(cut, config)
    for step in range(2):
        update(straight, first, step)
        update(cut, second, step)
    resumed = CompositeOptimizer(cut, config)
    resumed.load_state_dict({key: tensor.clone() for key, tensor in second.state_dict().items()})
    update(straight, first, 2)
    update(cut, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), cut.parameters(), strict=True))


def test_large_states_go_through_new_memory_and_small_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host tensor stands for a device: what comes back must be copied into the memory that was kept."""
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    stepper = OffloadedState(optimizer)
    for _ in range(2):
        network(torch.tensor([1, 2])).sum().backward()
        stepper.step()
    kept = {id(p): s["exp_avg"] for p, s in optimizer.state.items()}
    real, moved = torch.Tensor.to, []

    def to(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        moved.append(tensor.numel())
        return real(tensor, *args, **kwargs).clone()

    before = {id(p): s["exp_avg"].clone() for p, s in optimizer.state.items()}
    monkeypatch.setattr(torch.Tensor, "to", to)
    stepper.step()
    monkeypatch.undo()
    assert sorted(moved) == sorted(2 * [p.numel() for p in network.parameters() if p.numel() >= offload.SMALLEST])
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"] is kept[id(parameter)], "the same memory"
        assert not torch.equal(state["exp_avg"], before[id(parameter)]), "with the new values"
        assert travels(state["exp_avg"]) == (parameter.numel() >= offload.SMALLEST)


def test_it_is_one_or_the_other() -> None:
    with pytest.raises(ConfigError, match="offload_state moves whole moments"):
        OptimizerConfig.parse({"offload_state": True, "state_bits": 8})


@pytest.mark.gpu
def test_a_device_holds_no_moments() -> None:
    plain, offloaded = model().cuda(), model().cuda()
    one = CompositeOptimizer(plain, OptimizerConfig(kind="adamw"))
    other = CompositeOptimizer(offloaded, OptimizerConfig(kind="adamw", offload_state=True))
    for step in range(3):
        for network, optimizer in ((plain, one), (offloaded, other)):
            torch.manual_seed(step)
            network(torch.randint(0, 60, (9,)).cuda()).square().mean().backward()
            optimizer.step(1.0)
            optimizer.zero_grad()
    large = [t for t in other.state_dict().values() if travels(t)]
    assert large
    assert all(t.device.type == "cpu" and t.is_pinned() for t in large)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), offloaded.parameters(), strict=True))
