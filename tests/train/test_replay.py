"""A step made again has the bits of the first time, and tells which rows were bad; the run is left as it was."""

import math
from pathlib import Path

import pytest
import torch.distributed as dist
from train_case import Documents, tiny_config, tiny_model, tiny_rows

from lmworks.core.errors import CheckpointError, TrainingError
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.processes import run_processes
from lmworks.train.config import TrainConfig
from lmworks.train.events import read_events
from lmworks.train.faults import FaultInjector, nan_loss, spike
from lmworks.train.metrics import read_metrics
from lmworks.train.replay import Replay, replay_step
from lmworks.train.trainer import Trainer


def made(config: TrainConfig, folder: Path, faults: dict) -> Trainer:
    if not faults:
        return Trainer(tiny_model(config.seed), causal_lm, tiny_rows(config), config, folder)
    injected = FaultInjector(tiny_rows(config), causal_lm, faults)
    return Trainer(tiny_model(config.seed), injected, injected, config, folder)


def run(folder: Path, faults: dict | None = None, **changes) -> TrainConfig:
    config = tiny_config(**changes)
    made(config, folder, faults or {}).fit()
    return config


def replayed(config: TrainConfig, folder: Path, step: int, faults: dict | None = None) -> Replay:
    return replay_step(lambda quiet, scratch: made(quiet, scratch, faults or {}), config, folder, step)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("step", "begin"), [(5, 4), (6, 4), (7, 6), (8, 6)])
def test_a_replayed_step_has_the_recorded_bits_and_changes_nothing(tmp_path: Path, step: int, begin: int):
    config = run(tmp_path, keep_last=4, optimizer={"kind": "adamw"})
    before = contents(tmp_path)
    found = replayed(config, tmp_path, step)
    assert contents(tmp_path) == before
    assert found.checkpoint_step == begin
    assert found.differences == {}
    assert found.recorded == read_metrics(tmp_path / "metrics.jsonl")[step - 1]
    assert found.record["loss"] == found.recorded["loss"]
    assert found.record["grad_norm"] == found.recorded["grad_norm"]
    total = math.sqrt(sum(norms["gradient"] ** 2 for norms in found.record["norms"].values()))
    assert total == pytest.approx(found.record["grad_norm"], rel=1e-5)


def test_the_rows_of_a_step_have_their_loss_and_documents(tmp_path: Path):
    config = run(tmp_path)
    found = replayed(config, tmp_path, 8)
    assert found.culprits == []
    assert len(found.rows) == 3
    documents, rows = Documents(), tiny_rows(config)
    for row in found.rows:
        assert 28 <= row.row < 32
        assert sum(map(len, row.pieces)) == config.sequence_length
        assert row.documents == rows.documents(row.row)
        for number, piece in zip(row.documents, row.pieces, strict=True):
            assert " ".join(map(str, piece)) in " ".join(map(str, documents[int(number)].tolist()))


def test_a_step_that_ended_the_run_is_made_again_and_its_row_is_named(tmp_path: Path):
    faults = {22: nan_loss}
    with pytest.raises(TrainingError, match="bad rows: 22"):
        run(tmp_path, faults, steps=16)
    found = replayed(tiny_config(steps=16), tmp_path, 6, faults)
    assert (found.record, found.recorded, found.culprits) == ({}, None, [22])
    assert found.event == read_events(tmp_path / "events.jsonl")[0]
    assert [row.row for row in found.rows] == [22]


def test_a_skipped_step_and_a_spike_are_the_same_again(tmp_path: Path):
    faults = {22: nan_loss, 42: spike(5.0)}
    settings = {"steps": 16, "keep_last": 9, "guard": {"nonfinite": "skip", "window": 8, "threshold": 40.0}}
    config = run(tmp_path, faults, **settings)
    events = read_events(tmp_path / "events.jsonl")
    for step, row in ((6, 22), (11, 42)):
        found = replayed(config, tmp_path, step, faults)
        assert found.differences == {}
        assert found.culprits == [row]
        assert found.event == next(event for event in events if event["step"] == step)


def test_a_step_before_the_first_checkpoint_begins_at_the_beginning(tmp_path: Path):
    config = run(tmp_path, keep_last=1)
    assert replayed(config, tmp_path, 2).differences == {}
    with pytest.raises(CheckpointError, match="keeps no checkpoint before step 3"):
        replayed(config, tmp_path, 3)
    (tmp_path / "step-00000008").rename(tmp_path / "aside")
    assert replayed(config, tmp_path, 3).differences == {}


def test_other_data_comes_out_otherwise_and_is_told(tmp_path: Path):
    config = run(tmp_path)
    found = replayed(config, tmp_path, 8, {30: spike(1.01)})
    assert set(found.differences) == {"loss", "grad_norm"}


def test_what_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(TrainingError, match="step 9 is none of the run's 1 to 8"):
        replayed(tiny_config(), tmp_path, 9)
    with pytest.raises(CheckpointError, match="is not there"):
        replayed(tiny_config(), tmp_path / "none", 2)


def on_a_mesh(folder: Path) -> tuple[dict, dict, list[int], int]:
    faults = {26: spike(3.0)}
    config = run(folder, faults, parallel={"data": 2}, keep_last=4)
    dist.barrier()
    found = replayed(config, folder, 7, faults)
    return found.differences, found.record["norms"], found.culprits, found.checkpoint_step


def test_on_a_mesh_every_rank_has_the_recorded_bits(tmp_path: Path):
    first, second = run_processes(on_a_mesh, 2, tmp_path)
    assert first == second
    assert (first[0], first[2], first[3]) == ({}, [26], 6)
