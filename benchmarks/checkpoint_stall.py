"""How long a checkpoint keeps a training run from its next step: written in the background, and at once.

A LLaMA-shaped model with AdamW in bfloat16, as the `pretrain` stage runs it. The stall is the time that saving adds to
the loop; what the writing in the background takes from the steps beside it is told too. The target is 5 % of a step.

    python benchmarks/checkpoint_stall.py [--quick] [--save]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from interleaved import HERE, Contestant, answer_lines, arguments, finish, in_turn, row, running
from our_train_worker import RandomRows
from train_throughput import QUIET, SHAPES, THREADS

from lmworks.models.build import build_model
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.train.callbacks import StepEnd
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.config import TrainConfig
from lmworks.train.model_preset import ModelPreset
from lmworks.train.trainer import Trainer

WORKER = "worker"
EVERY = 3
"""Steps between checkpoints: one is written while the next two steps are made."""


def answer(case: dict[str, Any]) -> dict[str, float]:
    """Train a few steps, with a checkpoint every third; medians in seconds."""
    sequence, steps = case["sequence"], case["steps"]
    preset = ModelPreset(
        hidden_size=case["hidden"], num_hidden_layers=case["layers"], num_attention_heads=case["heads"],
        intermediate_size=case["intermediate"],
    )  # fmt: skip
    model = preset.to_model_config(
        vocab_size=case["vocab"], sequence_length=sequence, bos_token_id=None, eos_token_ids=()
    )
    config = TrainConfig.parse(
        {
            "steps": steps, "batch_tokens": case["batch"] * sequence, "sequence_length": sequence,
            "checkpoint_every": EVERY, "optimizer": OptimizerConfig(kind="adamw", lr=1e-4).model_dump(),
            "checkpoint": {"asynchronous": case["asynchronous"]},
        }
    )  # fmt: skip
    ends: list[float] = []
    stalls: dict[int, float] = {}
    save = Checkpoints.save

    def timed(checkpoints: Checkpoints, step: int, *args: Any, **kwargs: Any) -> Path:
        begin = time.perf_counter()
        path = save(checkpoints, step, *args, **kwargs)
        stalls[step] = time.perf_counter() - begin
        return path

    def clock(_end: StepEnd) -> dict[str, float]:
        ends.append(time.perf_counter())
        return {}

    Checkpoints.save = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = RandomRows(case["vocab"], sequence)
            Trainer(build_model(model, seed=0), causal_lm, rows, config, Path(folder), callbacks=[clock]).fit()
    finally:
        Checkpoints.save = save  # type: ignore[method-assign]
    seconds = {step: ends[step] - ends[step - 1] for step in range(1, steps)}  # number of the step, from 0
    quiet = [s for step, s in seconds.items() if step % EVERY == EVERY - 1]  # farthest from the last checkpoint
    beside = [s - stalls[step] for step, s in seconds.items() if step % EVERY == 0]
    later = [s for step, s in stalls.items() if EVERY < step < steps]  # buffers are there from the first on
    step = statistics.median(quiet)
    return {
        "stall": statistics.median(later), "first": stalls[EVERY], "step": step,
        "beside": statistics.median(beside) / step - 1,
    }  # fmt: skip


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    if sys.argv[1:] == [WORKER]:
        torch.set_num_threads(THREADS)
        answer_lines(answer)
        return
    options = arguments(__doc__.split("\n")[0]).parse_args()
    shapes, batch, steps, rounds = (["10M"], 4, 3 * EVERY + 1, 1) if options.quick else (list(SHAPES), 16, 13, 3)
    cases = [
        {"case": f"{shape}, {way}", **SHAPES[shape], "sequence": 512, "batch": batch, "steps": steps,
         "asynchronous": way == "in the background"}
        for shape in shapes for way in ("in the background", "at once")
    ]  # fmt: skip
    ours = Contestant("ours", [sys.executable, str(HERE / "checkpoint_stall.py"), WORKER], QUIET)
    with running([ours]):
        answers = in_turn([ours], cases, options.rounds or rounds, warm_up=cases[:1])
    rows = []
    for shape in shapes:
        background, at_once = (answers["ours", f"{shape}, {way}"] for way in ("in the background", "at once"))
        for name, key in (("stall", "stall"), ("stall, first time", "first")):
            ours_, theirs = ([100 * a[key] / a["step"] for a in found] for found in (background, at_once))
            rows.append(row(f"{shape}, {name}", ours_, "% of a step", {"at once": theirs}, None, less_is_better=True))
        slower = [100 * a["beside"] for a in background]
        rows.append(row(f"{shape}, the step beside it is slower by", slower, "%", {}, None, less_is_better=True))
        rows.append(row(f"{shape}, a step", [a["step"] for a in background], "s", {}, None))
    finish("checkpoint_stall", rows, save=options.save)


if __name__ == "__main__":
    main()
