"""A tiny corpus and pretraining runs on it, also as functions of several processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lmworks.core.lineage import write_artifact
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train import held_out_text
from lmworks.train.pretrain import PretrainConfig, pretrain
from lmworks.train.run_log import RunLog

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "the", "big", "red", "house"]


def corpus(folder: Path) -> Path:
    with write_artifact(folder, "corpus", config={}) as writer:
        for split, documents in (("train", 60), ("validation", 8)):
            with (writer.folder / f"{split}.jsonl").open("w") as file:
                for i in range(documents):
                    text = " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(10 + i % 30))
                    row = {"id": f"{split}-{i}", "text": text, "source": "test", "license": "CC0"}
                    file.write(json.dumps(row) + "\n")
    return folder


def prepare(folder: Path) -> Path:
    """Corpus, tokenizer and tokens of a run."""
    corpus(folder / "corpus")
    train_tokenizer(TokenizerConfig(corpus=folder / "corpus", output=folder / "tokenizer", vocab_size=280))
    tokenize(TokenizeConfig(corpus=folder / "corpus", tokenizer=folder / "tokenizer", output=folder / "tokens"))
    return folder


def config(inputs: Path, output: Path, **changes: object) -> PretrainConfig:
    values = {
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "tokens": inputs / "tokens",
        "tokenizer": inputs / "tokenizer",
        "output": output,
        "train": {"steps": 12, "batch_tokens": 256, "sequence_length": 64, "checkpoint_every": 4, "eval_every": 6},
    }
    return PretrainConfig.parse(values, changes)


def exact(inputs: Path, output: Path, **parallel: Any) -> PretrainConfig:
    """Settings under which ranks change the weights by rounding alone, and rounding is not amplified."""
    settings = {"train.precision": "float32", "train.optimizer.kind": "adamw", "train.eval_every": 4}
    return config(inputs, output, **settings, **{f"train.parallel.{form}": n for form, n in parallel.items()})


def stopped(made: PretrainConfig) -> int:
    """Pretrain, and be asked to stop while the model is measured the first time; the exit status."""
    measure, asked = held_out_text.bits_per_byte, []

    def stops(*args: Any, **kwargs: Any) -> float:
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return measure(*args, **kwargs)

    with mock.patch.object(held_out_text, "bits_per_byte", stops):
        try:
            pretrain(made)
        except SystemExit as end:
            return int(end.code or 0)
    raise AssertionError("the run was not stopped")


def meshes(inputs: Path, folder: Path, steps: list[tuple[str, dict[str, int], bool]]) -> None:
    """On every rank: runs by name and mesh, each either stopped or gone on with to the end."""
    for name, parallel, stops in steps:
        made = exact(inputs, folder / name, **parallel)
        if stops:
            assert stopped(made) == 143
        else:
            pretrain(made)


@contextmanager
def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block a run gets SIGTERM once it has recorded a step, and ends by it."""
    record = RunLog.step

    def stop(log: RunLog, made: dict[str, Any]) -> None:
        record(log, made)
        if made["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", stop)
        with pytest.raises(SystemExit):
            yield
