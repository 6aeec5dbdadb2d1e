"""The loop: rows to batches to updates, with a guard, checkpoints, resume, metrics and a clean stop.

Everything that happens at a step follows from the step's number, the weights and what the guard remembers: the rows,
the learning rate, the random numbers, whether the update is made. So a run that was stopped and resumed ends in the
same bits as one that was not. Knows any model and any objective by what they do, and no engine.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lmworks.core.errors import CheckpointError, TrainingError
from lmworks.core.progress import bar, say
from lmworks.core.telemetry import emit
from lmworks.nn.batch import Batch
from lmworks.optim.averaging import WeightAverage
from lmworks.optim.clipping import GradientNorms
from lmworks.optim.optimizer import CompositeOptimizer
from lmworks.optim.param_groups import trainable
from lmworks.optim.schedules import learning_rate_factor
from lmworks.train.activation_checkpointing import recomputing
from lmworks.train.callbacks import Callback, StepEnd, TellsSteps
from lmworks.train.checkpoint import Checkpoints, require_same_run
from lmworks.train.config import TrainConfig
from lmworks.train.culprits import culprits
from lmworks.train.events import EventLog
from lmworks.train.guard import Finding, StepGuard, Verdict
from lmworks.train.interrupt import stop_on_signals
from lmworks.train.loss_scaling import DynamicLossScale
from lmworks.train.metrics import MetricsLog, RunFigures, read_metrics
from lmworks.train.norms import LayerNorms
from lmworks.train.profiling import StepProfiler, phase
from lmworks.train.run_state import RunState
from lmworks.train.signals import RunWatch
from lmworks.train.sinks import open_sinks
from lmworks.train.sizes import cut
from lmworks.train.step import Objective, StepTotals, WorkingCopy, accumulate_gradients, finish_gradients

Record = dict[str, Any]


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
    metrics: dict[str, Any]
    """The last record: loss, speed and what the callbacks measured."""
    metrics_file: Path
    checkpoint: Path


@dataclass(frozen=True)
class _Attempt:
    """A step whose gradients are there and whose update is not made."""

    step: int
    first_row: int
    rows: int
    totals: StepTotals
    norms: GradientNorms

    @property
    def where(self) -> str:
        return f"step {self.step + 1} (rows {self.first_row} to {self.first_row + self.rows - 1})"


class Trainer:
    """Trains a model's trainable parameters in place.

    Args:
        model: float32 weights.
        objective: gives the loss of a batch. One that is a `TellsSteps` is told how each step ended.
        rows: the data.
        config: the run.
        run_folder: for checkpoints, `metrics.jsonl` and `events.jsonl`. A run that was stopped there goes on.
        code_version: recorded in each checkpoint.
        callbacks: called after each step, in order.
        identity: further JSON-able facts (model configuration, hashes of data) that a checkpoint must share.
        flops_per_token: of forward and backward; gives model FLOPs utilization when known.
        bytes_per_target: of text; gives the training loss in bits per byte when known.
        profile: folder for a trace and a report of a few steps; None profiles nothing.
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
        bytes_per_target: float | None = None,
        profile: Path | None = None,
    ) -> None:
        self.model, self.objective, self.rows, self.config = model, objective, rows, config
        self.run_folder, self.code_version, self.callbacks = run_folder, code_version, callbacks
        self.identity = {**(identity or {}), "train": config.identity(), "parameters": _shapes_digest(model)}
        self.optimizer = CompositeOptimizer(model, config.optimizer)
        self.working = WorkingCopy(model, getattr(torch, config.precision))
        self.average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.guard = StepGuard(config.guard)
        self.loss_scale = DynamicLossScale(config.loss_scale) if config.precision == "float16" else None
        self.state = RunState(model, self.optimizer, self.guard, self.average, self.loss_scale)
        self.checkpoints = Checkpoints(run_folder, config.keep_last)
        self.events = EventLog(run_folder / "events.jsonl")
        self._device = next(model.parameters()).device
        self._figures = RunFigures(config.precision, self._device, flops_per_token, bytes_per_target)
        self._profiler = None if profile is None else StepProfiler(profile)

    def fit(self) -> TrainResult:
        """Train to the last step, from the newest intact checkpoint if there is one.

        Raises:
            TrainingError: the checkpoint is of another run, or the guard halts.
            DiskFullError: a checkpoint cannot be written; older ones are intact.
            SystemExit: with 130 or 143 after SIGINT or SIGTERM, once a checkpoint is written.
        """
        self.run_folder.mkdir(parents=True, exist_ok=True)
        config, log, watch = self.config, MetricsLog(self.run_folder / "metrics.jsonl"), RunWatch()
        done, saved = self._resume(log)
        record: Record = {}
        for record in read_metrics(log.path):
            watch.tell(record)
        if done == 0 and "rewind" in (config.guard.nonfinite, config.guard.spike):
            saved = self._save(0)  # there must be something to return to
        self._figures.begin()
        self.model.train()
        self.working.model.train()
        with (
            stop_on_signals() as stop,
            bar("training", config.steps, done) as progress,
            recomputing(self.working.model, config.activation_checkpointing),
            open_sinks(config.tracking, self.run_folder, done, config.to_dict()) as sinks,
            nullcontext() if self._profiler is None else self._profiler,
        ):
            while done < config.steps:
                made = self._step(done)
                if made is None:
                    back = self._rewind(done, log)
                    progress.advance(back - done)
                    done = back
                    continue
                record, done = made, done + 1
                log.append(record)
                for sink in sinks:
                    sink.write(record)
                if (sentence := watch.tell(record)) is not None:
                    say(f"step {done}: {sentence}")
                progress.advance(note=_note(record))
                if stop.signal or done == config.steps or done % config.checkpoint_every == 0:
                    saved = self._save(done)
                if stop.signal and done < config.steps:
                    say(f"stopped by {stop.signal.name} after step {done}; run the same again to go on from {saved}")
                    raise SystemExit(stop.exit_code)
        self._take_average()
        return TrainResult(done, record.get("loss", float("nan")), record, log.path, saved)

    def _step(self, step: int) -> Record | None:
        """Do update number `step`, counted from 0, and return its record; None asks to rewind."""
        begin = time.perf_counter()
        if self._profiler is not None:
            self._profiler.step_begins()
        attempt = self._gradients(step)
        verdict = self.guard.judge(
            step,
            attempt.totals.loss,
            float(attempt.norms.total),
            can_rescale=self.loss_scale is not None and self.loss_scale.can_lower,
        )
        if verdict.action != "update":
            self._report(attempt, verdict)
        if self.loss_scale is not None:
            self.loss_scale.update(overflow=verdict.finding is Finding.OVERFLOW)
        record = self._apply(attempt) if verdict.updates else {"skipped": verdict.reason}
        self.optimizer.zero_grad()
        if isinstance(self.objective, TellsSteps):
            record |= self.objective.step_done(updated=verdict.updates)
        if verdict.action == "rewind":
            return None
        if math.isfinite(attempt.totals.loss):
            record = {"loss": attempt.totals.loss, **attempt.totals.metrics, **record}
        tokens = self.config.size_at(step).batch_tokens
        seen = self.config.tokens_before(step + 1)
        record = {"step": step + 1, "tokens": seen, **record}
        record |= self._figures.of_step(attempt.totals.loss, tokens, time.perf_counter() - begin)
        if self._profiler is not None:
            self._profiler.step_ends()
        return record | self._call_back(step + 1, attempt.totals.loss)

    def _gradients(self, step: int) -> _Attempt:
        """Leave the mean gradient of a step's rows in the master weights."""
        config, size = self.config, self.config.size_at(step)
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout follows from the step, not from the past
        first = config.tokens_before(step) // config.sequence_length + self.guard.rows_passed
        rows = size.batch_tokens // config.sequence_length
        where = f"step {step + 1} (rows {first} to {first + rows - 1})"
        count = config.micro_batch_rows(rows)
        batches = (self._batch(start, count, size.sequence_length) for start in range(first, first + rows, count))
        scale = None if self.loss_scale is None else self.loss_scale.scale
        totals = accumulate_gradients(self.working, self.objective, batches, where, scale)
        norms = finish_gradients(self.model, totals.n_targets, config.gradient_clipping())
        return _Attempt(step, first, rows, totals, norms)

    def _batch(self, start: int, count: int, sequence_length: int) -> Batch:
        """Some rows on the device, cut into pieces where contexts are still short."""
        with phase("data"):
            batch = self.rows.rows(start, count)
            if sequence_length < self.config.sequence_length:
                batch = cut(batch, sequence_length)
            return batch.to(self._device)

    def _apply(self, attempt: _Attempt) -> Record:
        """Update the weights from their gradients; the figures of that."""
        config, step = self.config, attempt.step
        factor = learning_rate_factor(config.schedule, step, config.steps)
        due = config.norms_every is not None and (step + 1) % config.norms_every == 0
        layers = LayerNorms(self.model, attempt.norms) if due else None
        with phase("optimizer"):
            self.optimizer.step(factor)
            self.working.refresh()
            if self.average is not None:
                self.average.update(step)
        record: Record = {"grad_norm": float(attempt.norms.total), "learning_rate": config.optimizer.lr * factor}
        if self.loss_scale is not None:
            record["loss_scale"] = self.loss_scale.scale
        return record if layers is None else record | {"norms": layers.measure()}

    def _report(self, attempt: _Attempt, verdict: Verdict) -> None:
        """Record what the guard decided and which rows it was about; end the run if it said so.

        Raises:
            TrainingError: the verdict is to halt.
        """
        length = self.config.size_at(attempt.step).sequence_length
        bad: list[int] = []
        if verdict.finding is not Finding.OVERFLOW:
            rows = attempt.first_row, attempt.rows
            bad = culprits(self.working.model, self.objective, lambda row: self._batch(row, 1, length), *rows)
        event = {
            "step": attempt.step + 1,
            "finding": verdict.finding.name.lower(),
            "action": verdict.action,
            "reason": verdict.reason,
            "first_row": attempt.first_row,
            "last_row": attempt.first_row + attempt.rows - 1,
            "culprits": bad,
            "loss": attempt.totals.loss,
            "grad_norm": float(attempt.norms.total),
        }
        self.events.append(event)
        emit("train.guard", **event)
        named = f"; bad rows: {', '.join(map(str, bad))}" if bad else ""
        if verdict.action == "halt":
            raise TrainingError(f"{verdict.reason} at {attempt.where}{named}", _REMEDY)
        if verdict.action != "record" and verdict.finding is not Finding.OVERFLOW:
            say(f"{verdict.action}: {verdict.reason} at {attempt.where}{named}")

    def _call_back(self, done: int, loss: float) -> Record:
        """What the callbacks measure; where weights are averaged, on the average whenever it is time to evaluate."""
        config, figures = self.config, Record()
        every = config.eval_every
        due = done == config.steps or (every is not None and done % every == 0)
        with self._averaged() if due else nullcontext():
            for callback in self.callbacks:
                figures |= callback(StepEnd(done, config.steps, self.working.model, loss))
        return figures

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """While the block runs, the model is the average, where there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place():
            self.working.refresh()
            yield
        self.working.refresh()

    @torch.no_grad()
    def _take_average(self) -> None:
        """Leave the average in the model for good."""
        if self.average is not None:
            own = dict(trainable(self.model))
            for name, tensor in self.average.state_dict().items():
                own[name].copy_(tensor)
            self.working.refresh()

    def _rewind(self, step: int, log: MetricsLog) -> int:
        """Return to the last checkpoint and pass over the rows from there through step `step`; updates then done."""
        newest = self.checkpoints.newest()
        if newest is None:
            raise CheckpointError(f"no intact checkpoint is left to rewind to from step {step + 1}", "Start anew")
        passed = self.config.tokens_before(step + 1) - self.config.tokens_before(newest.step)
        self.state.load(newest, passed_rows=passed // self.config.sequence_length)
        self.working.refresh()
        log.truncate(newest.step)
        say(f"going on from step {newest.step} with rows after those of step {step + 1}")
        return newest.step

    def _resume(self, log: MetricsLog) -> tuple[int, Path]:
        """Load the newest checkpoint; `(updates done, where from)`, zero when there is none."""
        newest = self.checkpoints.newest()
        step = newest.step if newest else 0
        log.truncate(step)
        if newest is None:
            self.events.keep(0)
            return 0, self.run_folder
        require_same_run(newest, self.identity)
        self.state.load(newest)
        self.working.refresh()
        self.events.keep(self.guard.events)
        say(f"going on from {newest.path} after step {step} of {self.config.steps}")
        return step, newest.path

    def _save(self, done: int) -> Path:
        return self.checkpoints.save(done, self.state.state_dict(), self.identity, self.code_version)


_REMEDY = (
    "The weights were not updated and the last checkpoint is intact; lower the learning rate, lengthen the warm-up, "
    "look at these rows, or let `guard` skip or rewind"
)


def _shapes_digest(model: nn.Module) -> str:
    """One hash of all parameter names and shapes."""
    listing = "".join(f"{name} {tuple(p.shape)} {p.requires_grad}\n" for name, p in model.named_parameters())
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _note(record: Mapping[str, Any]) -> str:
    """What stands beside the progress bar."""
    loss = f"loss {record['loss']:.3f}" if "loss" in record else "skipped"
    return f"{loss} {record['tokens_per_second']:,.0f} tokens/s"
