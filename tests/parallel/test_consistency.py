"""Replicas that are no longer equal are found, with the first parameter and the rank named."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lmworks.core.errors import ParallelError
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.consistency import CPU_CHUNK, ReplicaCheck, fingerprint, require_equal_replicas
from lmworks.parallel.distribute import distribute
from lmworks.parallel.mesh import make_mesh
from lmworks.parallel.processes import run_processes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_any_element_that_changes_and_any_two_that_change_places_change_the_fingerprint(dtype: torch.dtype):
    values = torch.randn(2 * CPU_CHUNK + 5).to(dtype)
    seen = {tuple(fingerprint(values).tolist())}
    for index in (0, 1, CPU_CHUNK - 1, CPU_CHUNK, len(values) - 1):
        changed = values.clone()
        changed.view(torch.uint8)[index * dtype.itemsize] ^= 1
        seen.add(tuple(fingerprint(changed).tolist()))
    assert len(seen) == 6
    low, high = torch.tensor([1.0, 2.0]).to(dtype), torch.tensor([2.0, 1.0]).to(dtype)
    assert fingerprint(low)[0] == fingerprint(high)[0]
    assert fingerprint(low)[1] != fingerprint(high)[1]


def test_bits_count_and_not_values():
    assert not torch.equal(fingerprint(torch.tensor([0.0])), fingerprint(torch.tensor([-0.0])))
    assert torch.equal(fingerprint(torch.tensor([float("nan")])), fingerprint(torch.tensor([float("nan")])))
    assert fingerprint(torch.empty(0)).tolist() == [0, 0]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.register_parameter("unused", nn.Parameter(torch.zeros(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def corrupted(gradients: bool):
    """What a check at every second step says, before and after rank 2 flips a bit."""
    mesh = make_mesh(ParallelConfig(data=4))
    model = Layers()
    model(torch.ones(1, 4)).sum().backward()
    check = ReplicaCheck(model, mesh, every=2)
    found = [check.check(1, gradients=gradients), check.check(2, gradients=gradients)]
    if dist.get_rank() == 2:
        weight = model.second.weight.grad if gradients else model.second.weight
        with torch.no_grad():
            weight[1, 1] = torch.nextafter(weight[1, 1], torch.tensor(9.0))
    found.append(check.check(3, gradients=gradients))
    with pytest.raises(ParallelError) as error:
        check.check(4, gradients=gradients)
    return [*found, str(error.value)]


@pytest.mark.parametrize(("gradients", "what"), [(False, "parameters"), (True, "gradients")])
def test_one_corrupted_rank_is_named_on_all_ranks_at_the_next_check(gradients: bool, what: str):
    by_rank = run_processes(corrupted, 4, gradients)
    for skipped, whole, also_skipped, message in by_rank:
        assert skipped is also_skipped is None
        assert whole == by_rank[0][1] is not None
        assert f"at step 4 1 {what} differ between replicas, first 'second.weight': rank 2 of [0, 1, 2, 3]" in message


def missing_gradient():
    model = Layers()
    mesh = make_mesh(ParallelConfig(data=2))
    if dist.get_rank() == 0:
        model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(ParallelError, match=r"4 gradients differ between replicas, first 'first.weight'"):
        require_equal_replicas(model, mesh, gradients=True)


def test_a_gradient_that_one_rank_lacks_differs():
    run_processes(missing_gradient, 2)


def sharded():
    """Two replicas of two shards: only ranks that hold the same part are compared."""
    mesh = make_mesh(ParallelConfig(data=2, shard=2))
    model = Layers()
    distribute(model, mesh)
    before = require_equal_replicas(model, mesh)
    if dist.get_rank() == 3:
        with torch.no_grad():
            model.first.bias.to_local().add_(1.0)
    with pytest.raises(ParallelError) as error:
        require_equal_replicas(model, mesh)
    return before, str(error.value)


def test_of_sharded_replicas_the_same_parts_are_compared():
    by_rank = run_processes(sharded, 4)
    assert len({before for before, _ in by_rank}) == 1
    for _, message in by_rank:
        assert "first 'first.bias'" in message
        assert "of [1, 3] disagree" in message
