"""Optimizers on parameters of which every process has a part: the same bits as on whole ones."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lmworks.optim.algorithms import ALGORITHMS
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig
from lmworks.parallel.processes import run_processes


def trained(kind: str, split: bool) -> torch.Tensor:
    """A matrix after some updates from given gradients."""
    generator, mesh = torch.Generator().manual_seed(0), init_device_mesh("cpu", (2,))

    def drawn() -> torch.Tensor:
        whole = torch.randn(33, 48, generator=generator)
        return distribute_tensor(whole, mesh, [Shard(0)]) if split else whole

    model = nn.Linear(48, 33, bias=False)
    model.weight = nn.Parameter(drawn())
    optimizer = CompositeOptimizer(model, OptimizerConfig.parse({"kind": kind}))
    for _ in range(4):
        model.weight.grad = drawn()
        optimizer.step(1.0)
    weight = model.weight.detach()
    return weight.full_tensor() if split else weight


def same_bits() -> dict[str, bool]:
    return {kind: torch.equal(trained(kind, split=False), trained(kind, split=True)) for kind in ALGORITHMS}


@pytest.mark.slow
def test_equal_gradients_give_equal_bits_however_they_are_divided():
    assert run_processes(same_bits, 2) == [dict.fromkeys(ALGORITHMS, True)] * 2
