"""Groups by name hold the ranks they should, sums count every token once, and failing ranks are named."""

import os

import pytest
import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.mesh import make_mesh, process_group
from lmworks.parallel.processes import run_processes

NAMES = ("pipeline", "data", "shard", "context", "tensor", "replicate", "split", "tokens", "expert", "expert_replica")


def groups():
    """Of three meshes: the members of every group of the caller, its batch rank, and a sum over tokens."""
    found = []
    for config in (
        ParallelConfig(data=2, tensor=2),
        ParallelConfig(shard=2, context=2, expert=2),
        ParallelConfig(pipeline=2, data=-1, expert=2),
    ):
        mesh = make_mesh(config)
        members = {name: dist.get_process_group_ranks(mesh.group(name)) for name in NAMES}
        total = mesh.sum_tokens([torch.tensor(10.0 ** dist.get_rank()), torch.tensor(1)])
        found.append((members, mesh.batch_rank, [float(t) for t in total]))
    return found


def test_groups_hold_the_ranks_that_differ_in_one_dimension():
    by_rank = run_processes(groups, 4)
    hybrid, split, pipelined = (list(ranks) for ranks in zip(*by_rank, strict=True))
    assert hybrid[0][0]["tensor"] == [0, 1]
    assert hybrid[1][0]["data"] == hybrid[1][0]["replicate"] == hybrid[1][0]["tokens"] == [1, 3]
    assert [r[1] for r in hybrid] == [0, 0, 1, 1]
    assert [r[2] for r in hybrid] == [[101.0, 2.0], [1010.0, 2.0]] * 2
    assert split[2][0]["split"] == split[2][0]["tokens"] == [0, 1, 2, 3]
    assert split[2][0]["shard"] == [0, 2]
    assert split[2][0]["context"] == split[2][0]["expert"] == [2, 3]
    assert [r[1] for r in split] == [0, 0, 1, 1]
    assert split[0][2] == [1111.0, 4.0]
    assert pipelined[3][0]["pipeline"] == [1, 3]
    assert pipelined[3][0]["expert"] == pipelined[3][0]["data"] == [2, 3]
    assert pipelined[3][0]["expert_replica"] == [3]
    assert pipelined[0][2] == [11.0, 2.0]


def fails_on_rank_1():
    if dist.get_rank() == 1:
        raise ValueError("this rank is ill")
    dist.barrier()


def ends_on_rank_0():
    if dist.get_rank() == 0:
        os._exit(3)
    dist.barrier()


def test_a_failing_rank_is_named_and_the_others_end():
    with pytest.raises(ParallelError, match=r"rank \d of 2 failed(.|\n)*") as error:
        run_processes(fails_on_rank_1, 2)
    assert "this rank is ill" in str(error.value)
    with pytest.raises(ParallelError, match=r"rank \d of 2"):
        run_processes(ends_on_rank_0, 2)


def test_a_world_of_another_size_is_refused():
    with pytest.raises(ParallelError, match="data 3"):
        run_processes(three_of_two, 2)


def three_of_two():
    make_mesh(ParallelConfig(data=3))


def test_joining_needs_what_torchrun_gives(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ParallelError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"), process_group():
        raise AssertionError("it joined nothing")


def test_one_process_joins_and_leaves(monkeypatch, tmp_path):
    values = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with process_group():
        assert make_mesh(ParallelConfig()).size("tokens") == 1
    assert not dist.is_initialized()
