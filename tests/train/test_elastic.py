"""Runs under torchrun whose processes are killed or asked to end: they go on, and end as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from pretrain_case import exact, prepare

from lmworks.core.lineage import verify
from lmworks.models.hub import load_pretrained
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.pretrain import PretrainConfig, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STEPS = 120
LONG = {"train.steps": STEPS, "train.checkpoint_every": 20, "train.eval_every": None}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("inputs"))


def long(inputs: Path, output: Path, **parallel: int) -> PretrainConfig:
    return PretrainConfig.parse(exact(inputs, output, **parallel).to_dict(), LONG)


@pytest.fixture(scope="module")
def alone(inputs: Path) -> Path:
    pretrain(long(inputs, inputs / "alone"))
    return inputs / "alone"


@contextmanager
def torchrun(made: PretrainConfig, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run; whatever is left of it at the end is killed."""
    recipe = folder / "pretrain.yaml"
    recipe.write_text(yaml.safe_dump(made.to_dict()))
    words = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "lmworks", "pretrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*words, "--config", str(recipe)], env=environment, stderr=log)
    try:
        yield process
    finally:
        for victim in (*children(process.pid), process.pid):
            kill(victim)
        process.wait()


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """In the order of their ranks."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for(happened: Callable[[], bool], folder: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, (folder / "log").read_text()[-4000:]
        time.sleep(0.02)


def last_step(folder: Path) -> int:
    """Of the run's records."""
    metrics = folder / "run.checkpoints" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:  # the line is being written
        return 0


def require_same(made: Path, expected: Path) -> None:
    verify(made)
    one, other = (load_pretrained(path, dtype=torch.float32).state_dict() for path in (made, expected))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-4
    steps = [json.loads(line)["step"] for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_torchrun_starts_killed_workers_again_and_they_go_on(inputs: Path, alone: Path, tmp_path: Path):
    made = long(inputs, tmp_path / "run", data=-1)
    with torchrun(made, tmp_path, "--standalone", "--nproc-per-node", "2", "--max-restarts", "2") as process:
        for at in (25, 70):
            wait_for(lambda at=at: last_step(tmp_path) >= at, tmp_path)
            kill(children(process.pid)[-1])
        assert process.wait(150) == 0, (tmp_path / "log").read_text()[-4000:]
    assert (tmp_path / "log").read_text().count("going on from") == 2
    require_same(tmp_path / "run", alone)


def test_a_request_to_stop_is_met_with_a_checkpoint_within_its_deadline(inputs: Path, tmp_path: Path):
    made = PretrainConfig.parse(
        long(inputs, tmp_path / "run", data=-1).to_dict(),
        {"train.checkpoint_every": STEPS, "train.checkpoint.stop_deadline_seconds": 20},
    )
    with torchrun(made, tmp_path, "--standalone", "--nproc-per-node", "2") as process:
        wait_for(lambda: last_step(tmp_path) >= 25, tmp_path)
        begin = time.monotonic()
        process.terminate()
        assert process.wait(60) != 0
        assert time.monotonic() - begin < 30
    newest = Checkpoints(tmp_path / "run.checkpoints", 2).newest()
    assert newest is not None
    assert 25 <= newest.step == last_step(tmp_path) < STEPS
    assert not (tmp_path / "run").exists()
