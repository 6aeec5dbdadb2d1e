"""A tiny run that the tests of this folder share; run as a program, it is the process that they kill."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmworks.data.tokens.packing import PackedRows
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.models.transformer import Transformer
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.callbacks import StepEnd
from lmworks.train.config import TrainConfig
from lmworks.train.metrics import read_metrics
from lmworks.train.trainer import Trainer

VOCAB = 61
PROGRAM = Path(__file__)


class Documents:
    """Random documents in memory, in the shape of a token store."""

    def __init__(self, count: int = 40, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.documents = [generator.integers(0, VOCAB, n) for n in generator.integers(2, 40, count)]
        self.lengths = np.array([len(d) for d in self.documents])

    def __getitem__(self, index: int) -> np.ndarray:
        return self.documents[index]


def tiny_model(seed: int = 0, hidden_size: int = 16) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=hidden_size,
        max_position_embeddings=64,
        decoder=StackConfig(
            num_hidden_layers=2,
            attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=hidden_size // 2),
            mlp=MLPConfig(intermediate_size=2 * hidden_size),
        ),
    )
    return build_model(config, seed=seed)


def tiny_config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "steps": 8,
        "batch_tokens": 128,
        "micro_batch_tokens": 64,
        "sequence_length": 32,
        "precision": "float32",
        "schedule": {"warmup_steps": 2},
        "checkpoint_every": 2,
    }
    return TrainConfig.parse(values | changes)


def tiny_rows(config: TrainConfig) -> PackedRows:
    return PackedRows(Documents(), config.sequence_length, config.seed)


def tiny_trainer(folder: Path, *, model: Transformer | None = None, callbacks: tuple = (), **changes: Any) -> Trainer:
    config = tiny_config(**changes)
    return Trainer(model or tiny_model(config.seed), causal_lm, tiny_rows(config), config, folder, callbacks=callbacks)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def train(folder: Path, steps: int, on_step: Callable[[], object] = lambda: None) -> None:
    def slowly(_end: StepEnd) -> dict[str, float]:
        on_step()
        time.sleep(0.005)  # so that kills also hit the time between checkpoints
        return {}

    torch.set_num_threads(1)
    tiny_trainer(folder, steps=steps, callbacks=(slowly,)).fit()


def train_under_kills(folder: Path, steps: int, kills: int) -> None:
    """Train in child processes, each but the last killed at a random instant. Forks, to import torch once.

    Every third kill may come before the first step, while a checkpoint is found and loaded.
    """
    chance = random.Random(kills)
    for attempt in range(kills + 1):
        hear, tell = os.pipe()
        child = os.fork()
        if child == 0:
            train(folder, steps, partial(os.write, tell, b"."))
            os._exit(0)
        if attempt < kills:
            if attempt % 3 != 1:
                os.read(hear, 1)
            time.sleep(chance.uniform(0.0, 0.3))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(hear)
        os.close(tell)
        steps_done = max((r["step"] for r in read_metrics(folder / "metrics.jsonl")), default=0)
        print(os.waitstatus_to_exitcode(status), steps_done, flush=True)


if __name__ == "__main__":  # FOLDER STEPS KILLS
    train_under_kills(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
