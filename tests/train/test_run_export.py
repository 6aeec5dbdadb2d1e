"""A run's checkpoints become model folders while it goes on, whatever mesh wrote them, and nothing of it is changed."""

from pathlib import Path

import pytest
import torch
from pretrain_case import config, exact, meshes, prepare, stopped, stopped_after

from lmworks.cli.main import cli
from lmworks.core.errors import ArtifactError, CheckpointError
from lmworks.core.lineage import content_hash, verify
from lmworks.models.hub import load_pretrained
from lmworks.parallel.processes import run_processes
from lmworks.tokenization import load_tokenizer
from lmworks.train.pretrain import pretrain, run_folder_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("inputs"))


def export(*arguments: object) -> None:
    cli.main(["export", "checkpoint", *map(str, arguments)], standalone_mode=False)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted(folder.rglob("*")) if f.is_file()}


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(model, dtype=torch.float32).state_dict()


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_is_the_model_of_a_run_that_ended_there(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    changes = {"train.ema_decay": 0.9, "train.schedule.kind": "constant"}
    with stopped_after(6, monkeypatch):
        pretrain(config(inputs, tmp_path / "run", **changes))
    folder = run_folder_of(tmp_path / "run")
    (folder / ".step-00000009.tmp-1").mkdir()  # as a run that is writing has it
    before = files(folder)
    for given, step, name in ((tmp_path / "run", [], "six"), (folder, ["--step", 4], "four")):
        export(given, tmp_path / name, *step)
    assert files(folder) == before
    assert (folder / ".step-00000009.tmp-1").exists()
    assert f"{tmp_path / 'four'}: step 4 of 12, " in capsys.readouterr().out
    pretrain(config(inputs, tmp_path / "short", **changes, **{"train.steps": 6}))
    assert same(tmp_path / "six", tmp_path / "short")
    assert not same(tmp_path / "six", tmp_path / "four")
    assert load_tokenizer(tmp_path / "six").fingerprint == load_tokenizer(inputs / "tokenizer").fingerprint
    parents = {parent.role: parent.content_hash for parent in verify(tmp_path / "six").parents}
    assert parents["checkpoint"] == content_hash(folder / "step-00000006")
    assert {"tokens", "tokenizer"} <= parents.keys()


def test_a_damaged_or_missing_checkpoint_is_named_and_left(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with stopped_after(5, monkeypatch):
        pretrain(config(inputs, tmp_path / "run"))
    folder = run_folder_of(tmp_path / "run")
    with (folder / "step-00000005/state/.metadata").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"no intact checkpoint of step 5; .*changed"):
        export(tmp_path / "run", tmp_path / "made", "--step", 5)
    with pytest.raises(CheckpointError, match=r"of step 3; .*Steps that are there: 5, 4"):
        export(tmp_path / "run", tmp_path / "made", "--step", 3)
    assert not (tmp_path / "made").exists()
    export(tmp_path / "run", tmp_path / "made")
    assert verify(tmp_path / "made").config["step"] == 4
    assert (folder / "step-00000005").exists()
    with pytest.raises(ArtifactError, match="is no pretraining run"):
        export(tmp_path, tmp_path / "other")


@pytest.mark.slow
def test_a_sharded_run_is_exported_by_one_process(inputs: Path, tmp_path: Path):
    run_processes(meshes, 2, inputs, tmp_path, [("two", {"shard": 2}, True)])
    assert stopped(exact(inputs, tmp_path / "one")) == 143
    for run in ("one", "two"):
        export(tmp_path / run, tmp_path / f"exported {run}")
    one, two = (weights(tmp_path / f"exported {run}") for run in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-5
