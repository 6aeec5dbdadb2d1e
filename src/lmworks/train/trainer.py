"""The loop: rows to batches to updates, with checkpoints, resume, metrics and a clean stop.

Everything that happens at a step follows from the step's number and the weights: the rows, the learning
rate, the random numbers. So a run that was stopped and resumed ends in the same bits as one that was
not. Knows any model and any objective by what they do, and no engine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError
from lmworks.core.progress import bar, say
from lmworks.nn.batch import Batch
from lmworks.optim.optimizer import CompositeOptimizer
from lmworks.optim.param_groups import trainable
from lmworks.optim.schedules import learning_rate_factor
from lmworks.train.callbacks import Callback, StepEnd
from lmworks.train.checkpoint import Checkpoints, require_same_run
from lmworks.train.config import TrainConfig
from lmworks.train.interrupt import stop_on_signals
from lmworks.train.metrics import MetricsLog, measure_peak_flops, read_metrics
from lmworks.train.step import Objective, WorkingCopy, accumulate_gradients, finish_gradients


class Rows(Protocol):
    """Training data as a pure function of the row's number."""

    def rows(self, start: int, count: int) -> Batch:
        """Rows `start … start+count-1`, packed."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left."""

    step: int
    loss: float
    """Nats per target on the last batch; not a number when a finished run's record was removed."""
    metrics: dict[str, float]
    """The last record: loss, speed and what the callbacks measured."""
    metrics_file: Path
    checkpoint: Path


class Trainer:
    """Trains a model's trainable parameters in place.

    Args:
        model: float32 weights.
        objective: gives the loss of a batch.
        rows: the data.
        config: the run.
        run_folder: for checkpoints and `metrics.jsonl`. A run that was stopped there goes on.
        code_version: recorded in each checkpoint.
        callbacks: called after each step, in order.
        identity: further JSON-able facts (model configuration, hashes of data) that a checkpoint must share.
        flops_per_token: of forward and backward; gives model FLOPs utilization when known.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        rows: Rows,
        config: TrainConfig,
        run_folder: Path,
        *,
        code_version: str = "",
        callbacks: Sequence[Callback] = (),
        identity: Mapping[str, Any] | None = None,
        flops_per_token: float | None = None,
    ) -> None:
        self.model, self.objective, self.rows, self.config = model, objective, rows, config
        self.run_folder, self.code_version, self.callbacks = run_folder, code_version, callbacks
        self.identity = {**(identity or {}), "train": config.identity(), "parameters": _shapes_digest(model)}
        self.flops_per_token = flops_per_token
        self.optimizer = CompositeOptimizer(model, config.optimizer)
        self.working = WorkingCopy(model, getattr(torch, config.precision))
        self.checkpoints = Checkpoints(run_folder, config.keep_last)
        self._peak_flops = 0.0

    def fit(self) -> TrainResult:
        """Train to the last step, from the newest intact checkpoint if there is one.

        Raises:
            TrainingError: the checkpoint is of another run, or loss or gradient is not finite.
            DiskFullError: a checkpoint cannot be written; older ones are intact.
            SystemExit: with 130 or 143 after SIGINT or SIGTERM, once a checkpoint is written.
        """
        self.run_folder.mkdir(parents=True, exist_ok=True)
        config, log = self.config, MetricsLog(self.run_folder / "metrics.jsonl")
        done, saved = self._resume(log)
        record = (read_metrics(log.path) or [{}])[-1]
        if self.flops_per_token is not None:
            device = next(self.model.parameters()).device
            self._peak_flops = measure_peak_flops(getattr(torch, config.precision), device)
        self.model.train()
        self.working.model.train()
        with stop_on_signals() as stop, bar("training", config.steps, done) as progress:
            for step in range(done, config.steps):
                record = self._step(step)
                done = step + 1
                log.append(record)
                progress.advance(note=f"loss {record['loss']:.3f} {record['tokens_per_second']:,.0f} tokens/s")
                if stop.signal or done == config.steps or done % config.checkpoint_every == 0:
                    saved = self.checkpoints.save(done, self._state(), self.identity, self.code_version)
                if stop.signal and done < config.steps:
                    say(f"stopped by {stop.signal.name} after step {done}; run the same again to go on from {saved}")
                    raise SystemExit(stop.exit_code)
        return TrainResult(done, record.get("loss", float("nan")), record, log.path, saved)

    def _step(self, step: int) -> dict[str, float]:
        """Do update number `step`, counted from 0, and return its record."""
        config, begin = self.config, time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout follows from the step, not from the past
        first, count = step * config.rows_per_step, config.rows_per_micro_batch
        where = f"step {step + 1} (rows {first} to {first + config.rows_per_step - 1})"
        device = next(self.model.parameters()).device
        starts = range(first, first + config.rows_per_step, count)
        batches = (self.rows.rows(start, count).to(device) for start in starts)
        totals = accumulate_gradients(self.working, self.objective, batches, where)
        norm = finish_gradients(self.model, totals.n_targets, config.max_grad_norm, where)
        factor = learning_rate_factor(config.schedule, step, config.steps)
        self.optimizer.step(factor)
        self.optimizer.zero_grad()
        self.working.refresh()
        seconds = time.perf_counter() - begin
        record = {
            "step": step + 1,
            "tokens": (step + 1) * config.batch_tokens,
            "loss": totals.loss,
            **totals.metrics,
            "grad_norm": norm,
            "learning_rate": config.optimizer.lr * factor,
            "seconds": seconds,
            "tokens_per_second": config.batch_tokens / seconds,
        }
        if self.flops_per_token is not None:
            record["mfu"] = self.flops_per_token * record["tokens_per_second"] / self._peak_flops
        end = StepEnd(step + 1, config.steps, self.working.model, totals.loss)
        for callback in self.callbacks:
            record |= callback(end)
        return record

    def _resume(self, log: MetricsLog) -> tuple[int, Path]:
        """Load the newest checkpoint; `(updates done, where from)`, zero when there is none."""
        newest = self.checkpoints.newest()
        step = newest.step if newest else 0
        log.truncate(step)
        if newest is None:
            return 0, self.run_folder
        require_same_run(newest, self.identity)
        state = newest.load()
        with torch.no_grad():
            for name, tensor in self._weights().items():
                if name not in state or state[name].shape != tensor.shape:
                    raise CheckpointError(f"{newest.path} does not fit the model at {name!r}", "Start the run anew")
                tensor.copy_(state[name])
        optimizer_state = {k.removeprefix(_OPTIMIZER): v for k, v in state.items() if k.startswith(_OPTIMIZER)}
        self.optimizer.load_state_dict(optimizer_state)
        self.working.refresh()
        say(f"going on from {newest.path} after step {step} of {self.config.steps}")
        return step, newest.path

    def _state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on besides their numbers."""
        return {**self._weights(), **{_OPTIMIZER + k: v for k, v in self.optimizer.state_dict().items()}}

    def _weights(self) -> dict[str, Tensor]:
        """What training changes: trainable parameters and persistent buffers; frozen weights are input."""
        every_name = dict(self.model.named_parameters(remove_duplicate=False)).keys()
        buffers = {k: v for k, v in self.model.state_dict().items() if k not in every_name}
        return {_MODEL + name: tensor.detach() for name, tensor in (*trainable(self.model), *buffers.items())}


_MODEL, _OPTIMIZER = "model.", "optimizer."


def _shapes_digest(model: nn.Module) -> str:
    """One hash of all parameter names and shapes."""
    listing = "".join(f"{name} {tuple(p.shape)} {p.requires_grad}\n" for name, p in model.named_parameters())
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
