"""Small versions of a planned run: their shapes, and going on after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import ConfigError
from lmworks.train import ladder
from lmworks.train.ladder import ladder_configs, run_ladder
from lmworks.train.pretrain import PretrainConfig

PLANNED = PretrainConfig.parse(
    {
        "model": {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1536,
        },
        "tokens": "tokens",
        "tokenizer": "tokenizer",
        "output": "large",
        "train": {"steps": 1000, "schedule": {"warmup_steps": 100}},
    }
)


def test_every_size_with_every_number_of_steps(tmp_path: Path):
    configs = ladder_configs(PLANNED, [(128, 2), (256, 4)], [50, 200], tmp_path)
    assert [c.output.name for c in configs] == ["128x2-50", "128x2-200", "256x4-50", "256x4-200"]
    first = configs[0]
    model = first.model
    assert (model.num_attention_heads, model.num_key_value_heads, model.intermediate_size) == (2, 1, 384)
    assert (first.train.steps, first.train.schedule.warmup_steps) == (50, 5)
    assert first.train.optimizer == PLANNED.train.optimizer


def test_heads_of_another_size_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="100x2 is not a multiple of 64"):
        ladder_configs(PLANNED, [(100, 2)], [50], tmp_path)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained: list[Path] = []

    def fake(config: PretrainConfig) -> Any:
        trained.append(config.output)
        config.output.mkdir(parents=True)
        (config.output / "lineage.json").write_text(json.dumps({}))

    monkeypatch.setattr(ladder, "pretrain", fake)
    configs = ladder_configs(PLANNED, [(128, 2)], [50, 200], tmp_path)
    assert run_ladder(configs[:1]) == [configs[0].output]
    assert run_ladder(configs) == [c.output for c in configs]
    assert trained == [c.output for c in configs]
