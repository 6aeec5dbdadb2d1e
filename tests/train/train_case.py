"""A tiny run that the tests of this folder share."""

from __future__ import annotations

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
from lmworks.train.config import TrainConfig
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
