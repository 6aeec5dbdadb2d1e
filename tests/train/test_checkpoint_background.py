"""Saves in the background, what is kept, copies elsewhere, and a stop that cannot wait."""

import json
import threading
from pathlib import Path

import pytest
import torch

from lmworks.core.errors import CheckpointError, ConfigError, DiskFullError
from lmworks.train import checkpoint as module
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.checkpoint_config import CheckpointConfig, KeepBest

STATE = {"a.b": torch.arange(6.0).view(2, 3), "count": torch.tensor(5)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch):
    """Holds back the writing of shards until it is set."""
    event, write = threading.Event(), module.write_shards

    def slowly(*args):
        assert event.wait(60)
        write(*args)

    monkeypatch.setattr(module, "write_shards", slowly)
    yield event
    event.set()


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path, gate: threading.Event):
    checkpoints, state = Checkpoints(tmp_path, 1), {name: tensor.clone() for name, tensor in STATE.items()}
    checkpoints.save(1, state, {}, "v", asynchronous=True)
    for tensor in state.values():
        tensor.zero_()
    assert not checkpoints.wait(timeout=0)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []
    gate.set()
    assert checkpoints.wait()
    loaded = checkpoints.newest().load()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def test_only_one_save_is_under_way(tmp_path: Path, gate: threading.Event):
    checkpoints = Checkpoints(tmp_path, 5)
    checkpoints.save(1, STATE, {}, "v", asynchronous=True)
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(2, STATE, {}, "v", asynchronous=True)
    assert "step-00000001" in names(tmp_path)
    checkpoints.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("asks", ["wait", "save", "newest"])
def test_an_error_in_the_background_is_raised_once_by_who_asks_next(
    tmp_path: Path, asks: str, monkeypatch: pytest.MonkeyPatch
):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, STATE, {}, "v")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shards", full)
        checkpoints.save(2, STATE, {}, "v", asynchronous=True)
        checkpoints._background._thread.join()
    assert checkpoints.failed
    ask = {"wait": checkpoints.wait, "newest": checkpoints.newest, "save": lambda: checkpoints.save(3, STATE, {}, "v")}
    with pytest.raises(DiskFullError, match="step-00000002 failed: No space left"):
        ask[asks]()
    assert not checkpoints.failed
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoints.newest().step == 1


def test_a_stop_does_not_wait_longer_than_its_deadline(
    tmp_path: Path, gate: threading.Event, capsys: pytest.CaptureFixture[str]
):
    checkpoints = Checkpoints(tmp_path, 1)
    assert checkpoints.save_within(0.05, 7, STATE, {}, "v") is None
    said = " ".join(capsys.readouterr().err.split())
    assert "no checkpoint of step 7: writing took longer than the 0.05 s that a stop may take" in said
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []
    gate.set()
    assert checkpoints.save_within(60, 8, STATE, {}, "v") == tmp_path / "step-00000008"


def test_the_best_outlive_the_last(tmp_path: Path):
    best = KeepBest(metric="bits", count=2)
    checkpoints = Checkpoints(tmp_path, 1, keep_best=best)
    for step, bits in enumerate([3.0, 1.0, float("nan"), 2.0, None, 1.0], 1):
        checkpoints.save(step, STATE, {}, "v", metrics={} if bits is None else {"bits": bits, "note": "x"})
    assert names(tmp_path) == ["step-00000002", "step-00000006"]
    assert (checkpoints.best().step, checkpoints.best().metrics) == (2, {"step": 2, "bits": 1.0})
    assert json.loads((tmp_path / "step-00000002" / "lineage.json").read_text())["metrics"]["bits"] == 1.0
    checkpoints = Checkpoints(tmp_path, 1, keep_best=best.model_copy(update={"mode": "max", "count": 1}))
    checkpoints.save(7, STATE, {}, "v", metrics={"bits": 0.5})
    assert names(tmp_path) == ["step-00000002", "step-00000007"]
    assert checkpoints.newest().step == 7
    assert Checkpoints(tmp_path, 1).best() is None


def test_a_copy_elsewhere_is_gone_on_from(tmp_path: Path):
    url = f"file://{tmp_path / 'store'}"
    checkpoints = Checkpoints(tmp_path / "run", 2, upload=url)
    for step in (1, 2, 3):
        checkpoints.save(step, STATE, {"seed": step}, "v", asynchronous=step == 3)
    checkpoints.wait()
    assert names(tmp_path / "store") == ["step-00000002", "step-00000003"]
    (tmp_path / "store" / "step-00000003" / "lineage.json").unlink()  # as if the upload was cut off
    found = Checkpoints(tmp_path / "elsewhere", 2, upload=url).newest()
    assert (found.path, found.identity) == (tmp_path / "elsewhere" / "step-00000002", {"seed": 2})
    assert torch.equal(found.load()["a.b"], STATE["a.b"])


def test_an_upload_that_fails_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "store").write_text("a file where a folder should be")
    checkpoints = Checkpoints(tmp_path / "run", 2, upload=f"file://{tmp_path / 'store'}")
    checkpoints.save(1, STATE, {}, "v")
    assert "step-00000001 was not uploaded" in " ".join(capsys.readouterr().err.split())
    assert checkpoints.newest().step == 1


def test_a_storage_that_is_not_known_is_refused_at_once(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be uploaded to gold://vault"):
        Checkpoints(tmp_path, 1, upload="gold://vault")


def test_the_checkpoint_of_another_version_is_refused_and_left_alone(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, STATE, {}, "v")
    checkpoints.save(2, STATE, {}, "v")
    manifest = tmp_path / "step-00000002" / "lineage.json"
    values = json.loads(manifest.read_text())
    for change in ({"notes": values["notes"] | {"checkpoint_format": 9}}, {"format_version": 9}):
        manifest.write_text(json.dumps(values | change))
        with pytest.raises(CheckpointError, match=r"format.* 9"):
            checkpoints.newest()
        assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.b": torch.zeros(2, 3)}, "holds 1 tensors that the run has not, among them 'count'"),
        ({**STATE, "c": torch.zeros(1)}, "does not hold 'c'"),
        ({**STATE, "a.b": torch.zeros(2, 4)}, r"'a.b' is torch.float32 \[2, 3\] .* torch.float32 \[2, 4\] in the run"),
        ({**STATE, "count": torch.tensor(5.0)}, "'count' is torch.int64"),
    ],
)
def test_the_tensors_of_another_model_are_named(tmp_path: Path, tensors: dict, message: str):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, STATE, {}, "v")
    with pytest.raises(CheckpointError, match=message):
        checkpoints.newest().load_into(tensors)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="stop_deadline_seconds"):
        CheckpointConfig.parse({"stop_deadline_seconds": 0})
    with pytest.raises(ConfigError, match="mode"):
        CheckpointConfig.parse({"keep_best": {"mode": "least"}})
