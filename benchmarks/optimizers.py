"""Optimizers on one small task: the same grid of learning rates, the same seeds, a paired test.

The rules, after modded-nanogpt's third track: data, batches, model, schedule and number of steps are fixed; every
optimizer gets the same grid of rates and the same number of runs on it; the best rate is then run on seeds that tuning
has not seen, and each seed is compared with tuned AdamW on the same initial weights and batches. The text is the
language reference that every CPython carries (`pydoc_data.topics`), as bytes; its last tenth is for validation. Losses
are compared, not seconds, so runs go side by side, one on each core.

    python benchmarks/optimizers.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import torch
from interleaved import finish, row
from torch import Tensor

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.batch import Batch
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.clipping import ClippingConfig, clip_gradients, gradient_norms
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig
from lmworks.optim.schedules import ScheduleConfig, learning_rate_factor

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
KINDS = ("adamw", "muon", "lion", "lamb", "soap")
ROWS, LENGTH = 8, 128
STEPS, QUICK_STEPS = 300, 20
SEEDS, QUICK_SEEDS = 8, 5
TUNING_SEEDS = (1000, 1001)
EVAL_EVERY = 10
MOST_AT_ONCE = 16
SCHEDULE = ScheduleConfig(kind="linear", warmup_steps=10)
CLIPPING = ClippingConfig(limit=1.0)


@dataclass(frozen=True)
class Text:
    """Bytes to learn from and to be judged by."""

    train: Tensor
    validation: Tensor


@dataclass(frozen=True)
class Run:
    """One training."""

    kind: str
    """Of optimizer."""
    lr: float
    """Of what it takes."""
    other_lr: float
    """Of AdamW on what it leaves."""
    seed: int
    """Of weights and batches."""
    steps: int
    eval_every: int
    """Steps between validations; after the last there is one anyway."""


@cache
def text() -> Text:
    """The language reference, in the order of its topics."""
    data = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()), dtype=torch.int64)
    cut = len(data) * 9 // 10
    return Text(data[:cut], data[cut:])


def batch(data: Tensor, starts: Sequence[int]) -> Batch:
    """Rows of `LENGTH` bytes that begin at `starts`."""
    rows = torch.stack([data[s : s + LENGTH + 1] for s in starts])
    return Batch(
        input_ids=rows[:, :-1].flatten(),
        positions=torch.arange(LENGTH).repeat(len(rows)),
        cu_seqlens=torch.arange(0, len(rows) * LENGTH + 1, LENGTH, dtype=torch.int32),
        targets=rows[:, 1:].flatten(),
        loss_weights=torch.ones(len(rows) * LENGTH),
    )


def model_config() -> ModelConfig:
    """A LLaMA of 0.2 million parameters."""
    return ModelConfig(
        vocab_size=256,
        hidden_size=96,
        max_position_embeddings=LENGTH,
        decoder=StackConfig(
            num_hidden_layers=2,
            attention=AttentionConfig(num_attention_heads=3, num_key_value_heads=3, head_dim=32),
            mlp=MLPConfig(intermediate_size=256),
        ),
        tie_word_embeddings=False,
    )


def train(run: Run) -> dict[int, float]:
    """Validation loss in nats a byte by updates done."""
    data, steps = text(), run.steps
    model: Any = build_model(model_config(), seed=run.seed)
    leaves = run.kind in ("muon", "soap")
    rates = {"lr": run.other_lr, "matrix_lr": run.lr} if leaves else {"lr": run.lr}
    optimizer = CompositeOptimizer(model, OptimizerConfig.parse({"kind": run.kind, **rates}))
    generator = torch.Generator().manual_seed(run.seed)
    judged = batch(data.validation, range(0, len(data.validation) - LENGTH - 1, len(data.validation) // 64))
    losses = {}
    for step in range(steps):
        starts = torch.randint(len(data.train) - LENGTH - 1, (ROWS,), generator=generator).tolist()
        loss = causal_lm(model, batch(data.train, starts))
        torch.autograd.backward(loss.loss_sum / loss.n_targets)
        norms = gradient_norms(model)
        clip_gradients(model, norms, CLIPPING)
        optimizer.step(learning_rate_factor(SCHEDULE, step, steps))
        optimizer.zero_grad()
        if (step + 1) % run.eval_every == 0 or step + 1 == steps:
            with torch.no_grad():
                measured = causal_lm(model, judged)
            losses[step + 1] = float(measured.loss_sum / measured.n_targets)
    return losses


def tune(
    pool: ProcessPoolExecutor, kinds: Sequence[str], other_lr: float, steps: int, seeds: Sequence[int]
) -> dict[str, float]:
    """For each kind the rate of the grid with the least mean loss; runs that diverge count as infinitely bad."""
    runs = [Run(kind, lr, other_lr, seed, steps, steps) for kind in kinds for lr in GRID for seed in seeds]
    final: dict[tuple[str, float], list[float]] = {}
    for run, losses in zip(runs, pool.map(train, runs), strict=True):
        final.setdefault((run.kind, run.lr), []).append(losses[steps])
    means = {key: statistics.fmean(losses) for key, losses in final.items()}
    finite = {key: mean if mean == mean else float("inf") for key, mean in means.items()}
    best = {kind: min(GRID, key=lambda lr, kind=kind: finite[kind, lr]) for kind in kinds}  # type: ignore[misc]
    for kind, lr in best.items():
        print(f"{kind}: best of the grid is {lr:g}", flush=True)
    return best


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided exact sign-flip test: how often chance alone gives a sum as far from zero."""
    observed = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    far = sum(abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-12 for signs in flips)
    return far / len(flips)


def compare(
    kind: str, lr: float, runs: Sequence[Mapping[int, float]], adamw: Sequence[Mapping[int, float]], steps: int
) -> dict[str, Any]:
    """One row: final losses, the test, and the steps to AdamW's mean final loss."""
    ours, theirs = [r[steps] for r in runs], [r[steps] for r in adamw]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    target = statistics.fmean(theirs)
    reached = [next((step for step, loss in r.items() if loss <= target), None) for r in runs]
    every = [step for step in reached if step is not None]
    return row(f"loss after {steps} steps, {kind}", ours, "nats/byte", {"adamw": theirs}, None, less_is_better=True) | {
        "ours": round(statistics.median(ours), 4), "theirs": round(statistics.median(theirs), 4),
        "ratio": round(statistics.median(ours) / statistics.median(theirs), 4),
        "lr": lr, "at_edge_of_grid": lr in (GRID[0], GRID[-1]),
        "mean_difference": round(statistics.fmean(differences), 4),
        "p_value": round(paired_p(differences), 4), "seeds": len(runs),
        "steps_to_adamw": statistics.median(every) if len(every) > len(runs) / 2 else None,
    }  # fmt: skip


def main() -> None:
    """Tune, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and seeds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    options = parser.parse_args()
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if options.quick else (STEPS, SEEDS)
    tuning = TUNING_SEEDS[:1] if options.quick else TUNING_SEEDS
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(MOST_AT_ONCE, os.cpu_count() or 1), fresh, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        rates = tune(pool, ["adamw"], GRID[0], steps, tuning)
        # The others leave embeddings, head and norms to AdamW at its best rate.
        rates |= tune(pool, [kind for kind in KINDS if kind != "adamw"], rates["adamw"], steps, tuning)
        asked = [
            Run(kind, rates[kind], rates["adamw"], seed, steps, EVAL_EVERY) for seed in range(seeds) for kind in KINDS
        ]
        runs: dict[str, list[dict[int, float]]] = {kind: [] for kind in KINDS}
        for run, losses in zip(asked, pool.map(train, asked), strict=True):
            runs[run.kind].append(losses)
    rows = [compare(kind, rates[kind], runs[kind], runs["adamw"], steps) for kind in KINDS if kind != "adamw"]
    finish("optimizers", rows, save=options.save)


if __name__ == "__main__":
    main()
