"""A tiny run that tests share: a two-layer model, random documents, a handful of steps."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lmworks.data.packing import PackedRows
from lmworks.models.build import build_model
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, StackConfig
from lmworks.models.transformer import Transformer
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.optim.schedules import ScheduleConfig
from lmworks.train.config import TrainConfig
from lmworks.train.trainer import Trainer, TrainResult

VOCAB = 61


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


def tiny_config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "steps": 8,
        "batch_tokens": 128,
        "micro_batch_tokens": 64,
        "sequence_length": 32,
        "precision": "float32",
        "optimizer": OptimizerConfig(kind="muon"),
        "schedule": ScheduleConfig(warmup_steps=2),
        "checkpoint_every": 2,
    }
    return TrainConfig.parse(values | changes)


def tiny_trainer(folder: Path, *, callbacks: tuple = (), **changes: object) -> Trainer:
    config = tiny_config(**changes)
    rows = PackedRows(Documents(), config.sequence_length, config.seed)
    return Trainer(tiny_model(config.seed), causal_lm, rows, config, folder, callbacks=callbacks)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit(trainer: Trainer) -> TrainResult:
    return trainer.fit()


if __name__ == "__main__":  # started by the kill tests: train in FOLDER, then leave the weights there
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    folder = Path(sys.argv[1])
    slow = lambda end: time.sleep(0.01) or {}  # noqa: E731 - gives a kill something to hit
    trainer = tiny_trainer(folder, steps=int(sys.argv[2]), checkpoint_every=2, callbacks=(slow,))
    print("ready", flush=True)
    trainer.fit()
    torch.save(trainer.model.state_dict(), folder / "final.pt")
