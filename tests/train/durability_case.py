"""The run that is killed again and again; as a program, the one who kills it.

python durability_case.py FOLDER STEPS KILLS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from train_case import tiny_trainer

from lmworks.train import checkpoint
from lmworks.train.callbacks import StepEnd
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.trainer import Trainer

SETTINGS = {"checkpoint_every": 2, "eval_every": 3, "ema_decay": 0.9, "guard": {"spike": "skip"}}
PHASES = {"s": "save", "t": "train", "e": "eval"}


def trainer(folder: Path, steps: int, tell: Callable[[bytes], object] = lambda _: None) -> Trainer:
    """A tiny run that tells what it is about to do."""

    def callback(end: StepEnd) -> dict[str, float]:
        if end.step % 3 == 0:
            tell(b"e")
            time.sleep(0.005)
        tell(b"t")
        return {}

    return tiny_trainer(folder, steps=steps, callbacks=(callback,), **SETTINGS)


def train(folder: Path, steps: int, pipe: int) -> None:
    write = checkpoint.write_shards

    def told(*args: object) -> None:
        os.write(pipe, b"s")
        write(*args)  # type: ignore[arg-type]

    checkpoint.write_shards = told
    torch.set_num_threads(1)
    trainer(folder, steps, lambda phase: os.write(pipe, phase)).fit()


def kill_again_and_again(folder: Path, steps: int, kills: int) -> None:
    """Each child but the last is killed at a random instant. Forks, to import torch once."""
    chance, killed, newest = random.Random(kills), Counter[str](), 0
    while sum(killed.values()) < kills:
        phase = chance.choice("ste")
        status = _child(folder, steps, phase, chance)
        if status == 0:
            break  # it was done before the phase came
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it fails for no other reason"
        killed[PHASES[phase]] += 1
        found = Checkpoints(folder, 2).newest()
        reached = found.step if found else 0
        assert reached >= newest, f"the checkpoint of step {newest} is lost"
        assert not list(folder.glob("*.damaged")), "no checkpoint is published before it is whole"
        newest = reached
    print(json.dumps({"killed": killed, "newest": newest}), flush=True)
    assert _child(folder, steps, None, chance) == 0


def _child(folder: Path, steps: int, phase: str | None, chance: random.Random) -> int:
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        train(folder, steps, tell)
        os._exit(0)
    os.close(tell)
    if phase is not None:
        for _ in range(chance.randint(1, 3)):
            while (heard := os.read(hear, 1)) and heard != phase.encode():
                pass
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    else:
        while os.read(hear, 4096):
            pass
    _, status = os.waitpid(child, 0)
    os.close(hear)
    return status


if __name__ == "__main__":
    kill_again_and_again(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
