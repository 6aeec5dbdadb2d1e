"""`lmworks replay` builds the run again from what lies in its folder, and shows what the step learned from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pretrain_case import stopped_after
from test_continual import OLD, write_domain

from lmworks.cli.main import cli
from lmworks.core.errors import CheckpointError
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train.metrics import read_metrics
from lmworks.train.pretrain import PretrainConfig, pretrain


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed")
    write_domain(folder / "corpus", OLD)
    train_tokenizer(
        TokenizerConfig(
            corpus=folder / "corpus", output=folder / "tokenizer", vocab_size=280, special_tokens=["<mask>"]
        )
    )
    tokenize(TokenizeConfig(corpus=folder / "corpus", tokenizer=folder / "tokenizer", output=folder / "tokens"))
    return folder


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)


def settings(inputs: Path, output: Path, **changes: Any) -> PretrainConfig:
    values = {
        "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        "tokens": inputs / "tokens",
        "tokenizer": inputs / "tokenizer",
        "output": output,
        "train": {"steps": 6, "batch_tokens": 256, "sequence_length": 64, "checkpoint_every": 2},
    }
    return PretrainConfig.parse(values, changes)


def replay(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["replay", *map(str, words)])


def replayed(run: Path, step: int) -> dict[str, Any]:
    result = replay(run, "--step", str(step), "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("objective", [{}, {"kind": "masked_lm"}])
def test_a_finished_run_is_made_again_from_its_first_step(inputs: Path, tmp_path: Path, objective: dict) -> None:
    preset = {"model.preset": "bert"} if objective else {}
    pretrain(settings(inputs, tmp_path / "model", objective=objective, **preset))
    recorded = read_metrics(tmp_path / "model/metrics.jsonl")[3]
    found = replayed(tmp_path / "model", 4)
    assert (found["checkpoint_step"], found["differences"]) == (0, {})
    assert found["record"]["loss"] == recorded["loss"]
    assert found["record"]["grad_norm"] == recorded["grad_norm"]
    assert len(found["rows"]) == 3
    for row in found["rows"]:
        assert 12 <= row["row"] < 16
        assert len(row["texts"]) == len(row["documents"]) >= 1
        for text in row["texts"]:
            assert set(text.split()[1:-1]) <= set(OLD), "whole words of the corpus, none of them masked"
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left behind"


def test_kept_checkpoints_are_what_a_replay_begins_with(inputs: Path, tmp_path: Path) -> None:
    pretrain(settings(inputs, tmp_path / "model", **{"train.checkpoint.keep_finished": True}))
    found = replayed(tmp_path / "model", 6)
    assert (found["checkpoint_step"], found["differences"]) == (4, {})
    assert replayed(tmp_path / "model.checkpoints", 6)["record"]["loss"] == found["record"]["loss"]
    result = replay(tmp_path / "model", "--step", "3")
    assert isinstance(result.exception, CheckpointError), "of the last two checkpoints none is from before step 3"
    assert "keeps no checkpoint before step 3" in str(result.exception)


def test_a_stopped_run_is_shown_in_words(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_after(3, monkeypatch):
        pretrain(settings(inputs, tmp_path / "model"))
    result = replay(tmp_path / "model", "--step", "3", "--rows", "1")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "step 3, from the checkpoint of step 2: loss 5." in result.stdout
    assert "the same in all bits as the run's record" in result.stdout
    assert "decoder.layers.1" in result.stdout
    assert result.stdout.count("document ") >= 1
    assert not (tmp_path / "model").exists()


def test_a_refused_start_leaves_the_runs_settings_alone(inputs: Path, tmp_path: Path) -> None:
    pretrain(settings(inputs, tmp_path / "model", **{"train.checkpoint.keep_finished": True}))
    kept = (tmp_path / "model.checkpoints/run.json").read_bytes()
    with pytest.raises(Exception, match="belongs to another run"):
        pretrain(settings(inputs, tmp_path / "model", **{"train.seed": 1}))
    assert (tmp_path / "model.checkpoints/run.json").read_bytes() == kept


def test_what_is_no_run_is_named(inputs: Path, tmp_path: Path) -> None:
    for folder, message in (("none", "is no pretraining run"), ("tokenizer", "was not made by `lmworks pretrain`")):
        result = replay(inputs / folder, "--step", "1")
        assert message in str(result.exception)
    pretrain(settings(inputs, tmp_path / "model"))
    result = replay(tmp_path / "model", "--step", "7")
    assert "step 7 is none of the run's 1 to 6" in str(result.exception)
    shutil.move(inputs / "tokens", inputs / "aside")
    result = replay(tmp_path / "model", "--step", "1")
    shutil.move(inputs / "aside", inputs / "tokens")
    assert result.exit_code != 0
    assert "tokens" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
