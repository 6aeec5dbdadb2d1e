"""Runs under torchrun whose processes are killed or asked to end: they go on, and end as if nothing had been."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from pretrain_case import exact, prepare

from lmworks.core.lineage import verify
from lmworks.models.hub import load_pretrained
from lmworks.parallel.launch import Job, LaunchConfig, torchrun_line
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.pretrain import PretrainConfig, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STEPS = 120
LONG = {"train.steps": STEPS, "train.checkpoint_every": 20, "train.eval_every": None}
MEETING = "--local-addr 127.0.0.1 --rdzv-conf keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=1"
"""How soon torchrun believes that a host is gone, and how long it waits for one more."""


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
def torchrun(made: PretrainConfig, folder: Path, launch: LaunchConfig, more: str = "") -> Iterator[subprocess.Popen]:
    """Start a run by the line that a user is told; whatever is left of it at the end is killed."""
    recipe = folder / "pretrain.yaml"
    recipe.write_text(yaml.safe_dump(made.to_dict()))
    line = torchrun_line(Job("elastic", "lmworks", ("pretrain", "--config", str(recipe))), launch)
    words = ["env", *shlex.split(line.replace("torchrun ", f"torchrun {more} ", 1))]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(words, env={**os.environ, "PATH": path}, stderr=log)
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


def last_saved(folder: Path) -> int:
    """Step of the newest checkpoint; it is written while training goes on."""
    names = (path.name.removeprefix("step-") for path in (folder / "run.checkpoints").glob("step-*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def require_same(made: Path, expected: Path) -> None:
    verify(made)
    one, other = (load_pretrained(path, dtype=torch.float32).state_dict() for path in (made, expected))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-4
    steps = [json.loads(line)["step"] for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_torchrun_starts_killed_workers_again_and_they_go_on(inputs: Path, alone: Path, tmp_path: Path):
    made = long(inputs, tmp_path / "run", data=-1)
    with torchrun(made, tmp_path, LaunchConfig(processes_per_node=2, max_restarts=2)) as process:
        for at in (25, 70):
            wait_for(lambda at=at: last_step(tmp_path) >= at and last_saved(tmp_path) >= at - 10, tmp_path)
            kill(children(process.pid)[-1])
        assert process.wait(150) == 0, (tmp_path / "log").read_text()[-4000:]
    assert (tmp_path / "log").read_text().count("going on from") == 2
    require_same(tmp_path / "run", alone)


def test_a_host_that_comes_is_given_work_and_one_that_is_lost_leaves_the_other_to_go_on(
    inputs: Path, alone: Path, tmp_path: Path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch = LaunchConfig(nodes="1:2", head="127.0.0.1", port=free.getsockname()[1])
    made = long(inputs, tmp_path / "run", data=-1)
    second_rank = tmp_path / "run.checkpoints" / "logs" / "rank-00001.log"
    with torchrun(made, tmp_path, launch, MEETING) as first, ExitStack() as stack:
        wait_for(lambda: last_step(tmp_path) >= 5, tmp_path)
        assert not second_rank.exists(), "one host trains alone"
        (worker,) = children(first.pid)
        os.kill(worker, signal.SIGSTOP)  # lest the run be over before the second host has come
        second = stack.enter_context(torchrun(made, tmp_path, launch, MEETING))
        wait_for(lambda: "closing signal SIGTERM" in (tmp_path / "log").read_text(), tmp_path)
        os.kill(worker, signal.SIGCONT)
        wait_for(second_rank.exists, tmp_path)
        joined = last_step(tmp_path)
        wait_for(lambda: last_step(tmp_path) >= joined + 5, tmp_path)
        for victim in (second.pid, *children(second.pid)):
            kill(victim)
        assert first.wait(150) == 0, (tmp_path / "log").read_text()[-4000:]
    assert (tmp_path / "log").read_text().count("going on from") == 2
    require_same(tmp_path / "run", alone)


def test_a_request_to_stop_is_met_with_a_checkpoint_within_its_deadline(inputs: Path, tmp_path: Path):
    made = PretrainConfig.parse(
        long(inputs, tmp_path / "run", data=-1).to_dict(),
        {"train.checkpoint_every": STEPS, "train.checkpoint.stop_deadline_seconds": 20},
    )
    with torchrun(made, tmp_path, LaunchConfig(processes_per_node=2, checkpoint_deadline=60)) as process:
        wait_for(lambda: last_step(tmp_path) >= 25, tmp_path)
        begin = time.monotonic()
        process.terminate()
        assert process.wait(60) != 0
        assert time.monotonic() - begin < 30
    newest = Checkpoints(tmp_path / "run.checkpoints", 2).newest()
    assert newest is not None
    assert 25 <= newest.step == last_step(tmp_path) < STEPS
    assert not (tmp_path / "run").exists()
