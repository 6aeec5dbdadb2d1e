"""Runs on several processes end where one process ends, whatever the mesh; ranks decide together."""

from pathlib import Path

import pytest
import torch
from distributed_case import misfits, resume_and_faults, train_forms, trainer, whole

from lmworks.parallel.processes import run_processes
from lmworks.train.events import read_events
from lmworks.train.metrics import read_metrics

TWO = {
    "context": {"parallel": {"context": 2}},
    "pipeline": {"parallel": {"pipeline": 2}},
    "expert": {"parallel": {"data": 2, "expert": 2}, "experts": True},
}
FOUR = {
    "data x shard": {"parallel": {"data": 2, "shard": 2}},
    "tensor x shard": {"parallel": {"tensor": 2, "shard": 2}, "ema_decay": 0.5},
}
ALONE = {form: {"parallel": {form: 2}} for form in ("data", "shard", "tensor")}
"""Forms of which the meshes of four ranks are made."""


def gap(ours, theirs) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max()) for n in ours)


@pytest.mark.parametrize(("ranks", "forms"), [(2, TWO), (4, FOUR), pytest.param(2, ALONE, marks=pytest.mark.slow)])
def test_every_mesh_ends_with_the_weights_of_one_process(tmp_path: Path, ranks: int, forms: dict):
    everywhere = run_processes(train_forms, ranks, tmp_path / "many", forms)
    for name, changes in forms.items():
        alone = trainer(tmp_path / "one" / name, **{k: v for k, v in changes.items() if k != "parallel"})
        expected, metrics = alone.fit(), None
        for found in everywhere:
            weights, metrics = found[name]
            assert "error" not in metrics, metrics
            assert gap(weights, whole(alone)) <= 1e-5, name
            for key in ("loss", "grad_norm"):
                assert metrics[key] == pytest.approx(expected.metrics[key], rel=1e-5), name


def test_ranks_stop_resume_and_meet_bad_rows_together(tmp_path: Path):
    faulty = 3 * 4 + 3  # of step 4, whose rows 12 and 13 are the first rank's
    one, other = run_processes(resume_and_faults, 2, tmp_path, faulty)
    for found in (one, other):
        assert found["exit"] == 143
        assert found["straight"].keys() == found["resumed"].keys()
        assert all(torch.equal(w, found["resumed"][n]) for n, w in found["straight"].items())
        assert "loss is nan at step 4 (rows 12 to 15); bad rows: 15 (rank 1)" in found["halt"]
        assert found["skip"]["skipped"] == "the loss is nan"
        assert gap(found["skip weights"], found["halt weights"]) == 0
        assert found["figure"] == one["figure"] > 0
    (event,) = read_events(tmp_path / "skip" / "events.jsonl")
    assert (event["culprits"], event["culprit_ranks"]) == ([15], [1])
    assert [r["step"] for r in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_what_does_not_fit_is_refused_before_the_start(tmp_path: Path):
    for messages in run_processes(misfits, 2, tmp_path / "run"):
        expected = (
            "= 1 ranks, and there are 2 processes",
            "= 3 ranks, and there are 2 processes",
            "3 rows of a step do not divide among data x shard = 2 ranks",
            "has 1 rows of a batch of 64 tokens, which do not divide into micro-batches of 2 rows",
            "precision float16 scales losses",
            "gradient_compression 'bfloat16' is of whole float32 replicas",
            "state_bits 8 needs whole parameters",
        )
        assert len(messages) == len(expected), messages
        for message, part in zip(messages, expected, strict=True):
            assert part in message
    assert not (tmp_path / "run").exists()
