"""Rows of whole documents train, and a run that stopped goes on to the same bits."""

from pathlib import Path

import pytest
from train_case import Documents, same_weights, tiny_config, tiny_model

from lmworks.core.errors import ConfigError
from lmworks.data.tokens.best_fit import BestFitRows
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.pretrain import PretrainConfig
from lmworks.train.trainer import StepEnd, Trainer


def stop(end: StepEnd) -> dict[str, float]:
    if end.step == 5:
        raise KeyboardInterrupt
    return {}


def trainer(folder: Path, seed: int = 0, **callbacks: tuple) -> Trainer:
    config = tiny_config()  # 16 rows are an epoch or so, and 8 steps of 4 rows two
    return Trainer(tiny_model(seed), causal_lm, BestFitRows(Documents(), 32, 0), config, folder, **callbacks)


def test_a_run_on_fitted_rows_resumes_to_the_same_bits(tmp_path: Path):
    straight = trainer(tmp_path / "straight")
    straight.fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", callbacks=(stop,)).fit()
    resumed = trainer(tmp_path / "cut", seed=9)
    resumed.fit()
    assert same_weights(straight.model, resumed.model)


def test_rows_of_pairs_are_whole_already():
    values = {"tokens": "t", "tokenizer": "k", "output": "o", "train": {"steps": 1, "batch_tokens": 512}}
    objective = {"kind": "seq2seq", "separator": "|"}
    with pytest.raises(ConfigError, match="leave `packing` out"):
        PretrainConfig.parse({**values, "objective": objective, "packing": "best-fit"})
