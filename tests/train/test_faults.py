"""A rank of a mesh that goes wrong: every rank ends with one message, which names the culprit, or goes on as told."""

import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from train_case import tiny_config, tiny_model, tiny_rows

from lmworks.core.errors import LMWorksError, ParallelError
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.processes import run_processes
from lmworks.train.events import read_events
from lmworks.train.faults import FaultInjector, killed, nan_loss, spike, stalled
from lmworks.train.metrics import read_metrics
from lmworks.train.trainer import Trainer

QUICK = {"watchdog": {"report_after_seconds": 1.0, "interval_seconds": 0.1}, "stragglers_every": 4}


def trainer(folder: Path, faults: dict, times: int | None = None, **changes) -> Trainer:
    config = tiny_config(parallel={"data": 2}, watch=QUICK, **changes)
    injected = FaultInjector(tiny_rows(config), causal_lm, faults, times=times)
    return Trainer(tiny_model(config.seed), injected, injected, config, folder)


def nan_on_one_rank(folder: Path) -> tuple[str, str, int]:
    """What a halt says; what skipping leaves."""
    halted = ""
    try:
        trainer(folder / "halt", {22: nan_loss}).fit()
    except LMWorksError as error:
        halted = str(error)
    result = trainer(
        folder / "skip", {22: nan_loss, 50: spike(5.0)}, steps=16,
        guard={"nonfinite": "skip", "spike": "skip", "window": 8, "threshold": 40.0},
    ).fit()  # fmt: skip
    trainer(folder / "once", {22: nan_loss}, times=1, guard={"nonfinite": "skip"}).fit()
    return halted, type(result).__name__, result.step


def test_nan_or_a_spike_on_one_rank_is_decided_by_all_and_names_rank_and_row(tmp_path: Path):
    first, second = run_processes(nan_on_one_rank, 2, tmp_path)
    assert first == second
    assert "the loss is nan at step 6 (rows 20 to 23); bad rows: 22 (rank 1)" in first[0]
    events = read_events(tmp_path / "skip" / "events.jsonl")
    assert [(e["step"], e["culprits"], e["culprit_ranks"]) for e in events] == [(6, [22], [1]), (13, [50], [1])]
    assert len(read_metrics(tmp_path / "skip" / "metrics.jsonl")) == 16
    (event,) = read_events(tmp_path / "once" / "events.jsonl")  # the rank's own fault: its rows are good afterwards
    assert (event["step"], event["culprits"], event["culprit_ranks"]) == (6, [], [1])


def a_stall(folder: Path) -> float:
    return trainer(folder, {18: stalled(3.0)}).fit().loss


def test_a_stalled_rank_is_reported_by_name_and_the_run_ends_as_it_would_have(tmp_path: Path):
    assert len(set(run_processes(a_stall, 2, tmp_path))) == 1
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["step"], event["finding"], event["ranks"]) == (5, "hang", [1])
    assert "stalled" not in event["reason"]
    assert "faults.py" in event["stacks"]["1"]["MainThread"]
    stragglers = [r["straggler"]["rank"] for r in read_metrics(tmp_path / "metrics.jsonl") if "straggler" in r]
    assert len(stragglers) == 2
    assert stragglers[1] == 1
    for rank in (0, 1):
        assert "no progress in step 5" in (tmp_path / "logs" / f"rank-0000{rank}.log").read_text()


def program(folder: Path, rank: int) -> None:
    """Rank 1 is killed in step 5; the other tells what it caught."""
    torch.set_num_threads(1)
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        trainer(folder / "run", {18: killed}).fit()
    except ParallelError as error:
        (folder / "caught").write_text(str(error))
        os._exit(2)


def test_the_survivor_of_a_killed_rank_names_it_and_ends_with_its_checkpoint_intact(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=program, args=(tmp_path, rank), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + 40
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
        rank.close()
    assert statuses == [2, -9]
    caught = (tmp_path / "caught").read_text()
    assert "step 5 cannot be finished: rank 1 (" in caught
    assert "is gone: its process was killed or crashed" in caught
    assert run_processes(resumed, 2, tmp_path / "run") == [8, 8]


def resumed(folder: Path) -> int:
    return trainer(folder, {}).fit().step
