"""A run that is killed while it saves, trains and evaluates loses no checkpoint, and ends in the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import durability_case
import pytest
import torch
from train_case import same_weights

from lmworks.train.metrics import read_metrics


@pytest.mark.parametrize(
    ("kills", "steps"), [(6, 40), pytest.param(100, 700, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_a_run_killed_at_random_instants_ends_in_the_same_bits(tmp_path: Path, kills: int, steps: int):
    folder = tmp_path / "run"
    command = [sys.executable, "-W", "error", durability_case.__file__, str(folder), str(steps), str(kills)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert sum(told["killed"].values()) == kills
    assert set(told["killed"]) == {"save", "train", "eval"}
    assert told["newest"] > 0
    torch.set_num_threads(1)
    finished, straight = (durability_case.trainer(f, steps) for f in (folder, tmp_path / "straight"))
    straight.fit()
    finished.fit()  # loads the last checkpoint
    assert same_weights(finished.model, straight.model)
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl")] == list(range(1, steps + 1))
    assert sorted(p.name for p in folder.glob(".*")) == []
    assert sorted(p.name for p in folder.glob("step-*")) == [f"step-{steps - 2:08d}", f"step-{steps:08d}"]
