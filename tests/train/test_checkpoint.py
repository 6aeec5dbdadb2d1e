"""Durability: damage, a full disk, and another run's checkpoints."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_case import PROGRAM, same_weights, tiny_trainer

from lmworks.core.errors import CheckpointError, TrainingError
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.metrics import MetricsLog, read_metrics


def test_only_the_last_checkpoints_are_kept(tmp_path: Path):
    tiny_trainer(tmp_path, keep_last=3, steps=9).fit()
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000006", "step-00000008", "step-00000009"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing file", "missing manifest", "empty folder"])
def test_a_damaged_checkpoint_is_skipped_with_a_message(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
):
    straight = tiny_trainer(tmp_path)
    straight.fit()
    newest = tmp_path / "step-00000008"
    file = newest / "state" / "__0_0.distcp"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flipped":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif damage == "missing file":
        file.unlink()
    elif damage == "missing manifest":
        (newest / "lineage.json").unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    resumed = tiny_trainer(tmp_path)
    resumed.fit()
    said = " ".join(capsys.readouterr().err.split())
    assert "skipping a damaged checkpoint, kept as step-00000008.damaged" in said
    assert "after step 6 of 8" in said
    assert same_weights(straight.model, resumed.model)
    assert newest.is_dir()
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"optimizer": {"lr": 0.5}}, r"train\.optimizer\.lr was 0\.003 and is now 0\.5"),
        ({"optimizer": {"kind": "adamw"}}, r"train\.optimizer\.kind was muon and is now adamw"),
        ({"seed": 3}, "seed was 0 and is now 3"),
        ({"steps": 9}, "steps was 8 and is now 9"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, changes: dict, difference: str):
    tiny_trainer(tmp_path).fit()
    with pytest.raises(TrainingError, match=difference):
        tiny_trainer(tmp_path, **changes).fit()


def test_saving_more_often_is_no_other_run(tmp_path: Path):
    tiny_trainer(tmp_path).fit()
    assert tiny_trainer(tmp_path, checkpoint_every=5, keep_last=1, eval_every=2).fit().step == 8


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from train_case import tiny_trainer
from lmworks.core.errors import DiskFullError

def fill(end):
    if end.step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    return {{}}

try:
    tiny_trainer(Path({folder!r}), callbacks=(fill,), checkpoint={{"asynchronous": False}}).fit()
except DiskFullError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_is_named_and_leaves_the_older_checkpoint(tmp_path: Path):
    script = FULL_DISK.format(tests=str(PROGRAM.parent), folder=str(tmp_path / "run"))
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 7, result.stderr
    assert "step-00000004 failed: File too large" in result.stdout
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["metrics.jsonl", "step-00000002"]
    resumed, straight = tiny_trainer(tmp_path / "run"), tiny_trainer(tmp_path / "straight")
    resumed.fit()
    straight.fit()
    assert same_weights(resumed.model, straight.model)


def test_tensors_come_back_as_they_were(tmp_path: Path):
    state = {"a.b": torch.randn(3, 2), "half": torch.randn(4).bfloat16(), "count": torch.tensor(5)}
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(5, state, {"seed": 1}, "v")
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.identity) == (5, {"seed": 1})
    loaded = found.load()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k]) and loaded[k].dtype == state[k].dtype for k in state)
    shutil.rmtree(found.path / "state")
    with pytest.raises(CheckpointError, match="step-00000005 cannot be read"):
        found.load()


@pytest.mark.parametrize(
    "contents",
    [b"\x80\x04cut", b"no pickle", b"", b"cmissing_module\nThing\n.", pickle.dumps({"tensors": []})],
    ids=["cut", "text", "empty", "unknown class", "another value"],
)
def test_tensors_of_a_version_that_cannot_be_read_are_refused_by_name(tmp_path: Path, contents: bytes):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, {"a": torch.ones(2)}, {}, "v")
    (tmp_path / "step-00000001" / "state" / ".metadata").write_bytes(contents)
    manifest = tmp_path / "step-00000001" / "lineage.json"
    values = json.loads(manifest.read_text())
    values["files"]["state/.metadata"] = hashlib.sha256(contents).hexdigest()
    manifest.write_text(json.dumps(values))
    found = checkpoints.newest()
    assert found is not None, "it is as it was written"
    with pytest.raises(
        CheckpointError, match=r"step-00000001 cannot be read by torch .*Remove it to go on from an old"
    ):
        found.load_into({"a": torch.zeros(2)})


def test_metrics_forget_later_steps_and_a_torn_line(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.truncate(2)
    log.append({"step": 3, "again": True})
    assert read_metrics(log.path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
