"""Runs on several processes end where one process ends, whatever the mesh; ranks decide together."""

from pathlib import Path

import pytest
import torch
from distributed_case import train_forms, trainer, whole

from lmworks.parallel.processes import run_processes

TWO = {
    "data": {"parallel": {"data": 2}},
    "shard": {"parallel": {"shard": 2}},
    "tensor": {"parallel": {"tensor": 2}},
    "context": {"parallel": {"context": 2}},
    "pipeline": {"parallel": {"pipeline": 2}},
    "expert": {"parallel": {"data": 2, "expert": 2}, "experts": True},
}
FOUR = {
    "data x shard": {"parallel": {"data": 2, "shard": 2}},
    "tensor x shard": {"parallel": {"tensor": 2, "shard": 2}, "ema_decay": 0.5},
}


def gap(ours, theirs) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max()) for n in ours)


@pytest.mark.parametrize(("ranks", "forms"), [(2, TWO), (4, FOUR)])
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
