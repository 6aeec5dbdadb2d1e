"""Exact resume: a stopped or killed run ends in the same bits as one that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import verify
from lmworks.data.tokens.packing import PackedRows
from lmworks.models.transformer import Transformer
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.schedules import ScheduleConfig
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import random_tokens, tiny_model
from lmworks.train.callbacks import StepEnd
from lmworks.train.config import TrainConfig
from lmworks.train.trainer import Trainer

STEPS = 12
CONFIG = TrainConfig(
    steps=STEPS,
    batch_tokens=256,
    micro_batch_tokens=128,
    sequence_length=64,
    precision="float32",
    schedule=ScheduleConfig(warmup_steps=2),
    checkpoint_every=2,
)


class _Documents:
    """Random documents, as a token store would give them."""

    def __init__(self) -> None:
        self._ids = [np.array(random_tokens(5 + 7 * i % 60, i), dtype=np.uint16) for i in range(40)]
        self.lengths = np.array([len(d) for d in self._ids])

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        return self._ids[index]


def resume_rows(kills: int = 10) -> list[Row]:
    """Bit differences after a planned stop, and damage after kills at random instants."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = train(folder / "whole")
        _stop_after(folder / "stopped", STEPS // 2)
        stopped = _differing(whole, train(folder / "stopped"))
        lost, corrupt = kill_at_random(folder / "killed", kills)
        killed = _differing(whole, train(folder / "killed"))
    return [
        Row("resume: weights that differ after N + resume + N steps", stopped, 0),
        Row(f"resume: weights that differ after {kills} x SIGKILL", killed, 0),
        Row(f"resume: corrupt or lost checkpoints after {kills} x SIGKILL", corrupt + lost, 0),
    ]


def train(folder: Path, on_step: Callable[[StepEnd], dict[str, float]] | None = None) -> Transformer:
    """Train the tiny model to its last step, going on from what stands in `folder`."""
    torch.set_num_threads(1)
    model = tiny_model("llama")
    rows = PackedRows(_Documents(), CONFIG.sequence_length, CONFIG.seed)
    Trainer(model, causal_lm, rows, CONFIG, folder, callbacks=[on_step] if on_step else []).fit()
    return model


def _stop_after(folder: Path, step: int) -> None:
    """Train until SIGTERM arrives after `step`: the loop writes a checkpoint and leaves."""

    def stop(end: StepEnd) -> dict[str, float]:
        if end.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    try:
        train(folder, stop)
    except SystemExit:
        return
    raise AssertionError("the run ended before it was stopped")


def kill_at_random(folder: Path, kills: int, seed: int = 0) -> tuple[int, int]:
    """SIGKILL the run at `kills` random instants, restarting it where it stands.

    Returns:
        How often a finished checkpoint was gone afterwards, and how many published ones were damaged.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    generator = random.Random(seed)
    lost = corrupt = reached = done = 0
    while done < kills:
        process = context.Process(target=_slow_run, args=(folder,))
        process.start()
        process.join(generator.uniform(0.05, 0.6))
        if process.exitcode is None:
            process.kill()
            process.join()
            done += 1
        elif process.exitcode == 0:  # it reached its end: begin another run
            shutil.rmtree(folder)
            reached = 0
            continue
        else:
            raise AssertionError(f"the run failed with status {process.exitcode}")
        steps = []
        for checkpoint in folder.glob("step-*"):
            try:
                verify(checkpoint)
                steps.append(int(checkpoint.name.removeprefix("step-")))
            except ArtifactError:
                corrupt += 1
        newest = max(steps, default=0)
        lost += newest < reached
        reached = max(reached, newest)
    return lost, corrupt


def _slow_run(folder: Path) -> None:
    """The run with a pause at each step, so that kills fall all over it."""

    def pause(end: StepEnd) -> dict[str, float]:
        time.sleep(0.1)
        return {}

    train(folder, pause)


def _differing(one: Transformer, other: Transformer) -> int:
    """Parameters whose bits are not all equal."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(not torch.equal(a, b) for a, b in pairs)
