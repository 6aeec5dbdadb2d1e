"""The pretrain stage on several processes: one artifact, of the weights of one process, whatever meshes made it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pretrain_case import exact, meshes, prepare, stopped

from lmworks.core.lineage import verify
from lmworks.models.hub import load_pretrained
from lmworks.parallel.processes import run_processes
from lmworks.train.pretrain import pretrain


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs: Path) -> Path:
    """What one process makes."""
    pretrain(exact(inputs, inputs / "alone"))
    return inputs / "alone"


def require_same(made: Path, expected: Path) -> None:
    assert verify(made).kind == "model"
    assert not made.with_name(made.name + ".checkpoints").exists()
    one, other = (load_pretrained(path, dtype=torch.float32).state_dict() for path in (made, expected))
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5, made.name


@pytest.mark.slow
def test_torchrun_makes_the_model_of_one_process(inputs: Path, alone: Path, tmp_path: Path):
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text(yaml.safe_dump(exact(inputs, tmp_path / "two", data=-1).to_dict()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    made = subprocess.run(
        [*torchrun, "-m", "lmworks", "pretrain", "--config", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    assert (
        made.stderr.count("training tokens") == made.stderr.count("step 12: validation") == 1
    )  # the first rank speaks
    require_same(tmp_path / "two", alone)


def test_a_run_goes_on_where_another_mesh_stopped(inputs: Path, alone: Path, tmp_path: Path):
    assert stopped(exact(inputs, tmp_path / "made")) == 143
    run_processes(meshes, 2, inputs, tmp_path, [("made", {"shard": 2}, True), ("made", {"tensor": 2}, False)])
    require_same(tmp_path / "made", alone)


@pytest.mark.slow
def test_a_run_goes_on_with_more_processes_or_fewer(inputs: Path, alone: Path, tmp_path: Path):
    assert stopped(exact(inputs, tmp_path / "one to four")) == 143
    four = [("one to four", {"data": 2, "shard": 2}, False), ("four to two to one", {"shard": 4}, True)]
    run_processes(meshes, 4, inputs, tmp_path, four)
    run_processes(meshes, 2, inputs, tmp_path, [("four to two to one", {"data": 2}, True)])
    pretrain(exact(inputs, tmp_path / "four to two to one"))
    for name in ("one to four", "four to two to one"):
        require_same(tmp_path / name, alone)
