"""The loop: rows to batches to updates, with a guard, checkpoints, resume, metrics and a clean stop.

Everything that happens at a step follows from the step's number, the weights and what the guard remembers: the rows,
the learning rate, the random numbers, whether the update is made. So a run that was stopped and resumed ends in the
same bits as one that was not. Knows any model and any objective by what they do, and no engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

import torch
from torch import nn

from lmworks.core.errors import CheckpointError, TrainingError
from lmworks.nn.batch import Batch
from lmworks.optim.averaging import WeightAverage
from lmworks.optim.clipping import GradientNorms
from lmworks.optim.optimizer import CompositeOptimizer
from lmworks.optim.param_groups import trainable
from lmworks.optim.schedules import learning_rate_factor
from lmworks.optim.shards import part
from lmworks.train.allocator import keeping_freed_memory
from lmworks.train.arrangement import arrange
from lmworks.train.callbacks import Callback, StepEnd, TellsSteps
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.compile import running_blocks
from lmworks.train.config import TrainConfig
from lmworks.train.culprits import RowSums, blame, culprit_ranks, culprits, measure_rows
from lmworks.train.float8 import computing_in_float8
from lmworks.train.guard import Finding, StepGuard, Verdict
from lmworks.train.interrupt import exit_code, stop_on_signals
from lmworks.train.loss_scaling import DynamicLossScale
from lmworks.train.metrics import RunFigures
from lmworks.train.norms import LayerNorms
from lmworks.train.profiling import StepProfiler, phase
from lmworks.train.rank_watch import RankWatch
from lmworks.train.ranks import join_ranks
from lmworks.train.run_log import Record, RunLog
from lmworks.train.run_state import RunState
from lmworks.train.saved_checkpoint import require_same_run, shapes_digest
from lmworks.train.sizes import cut
from lmworks.train.step import Objective, StepTotals, accumulate_gradients, finish_gradients


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
        tensor_plan: how the model's matrices can be divided, by module; see `parallel/distribute.py`.
        shard_units: names of the modules that are gathered together where weights are sharded; None: the layers.

    On several processes every one makes a `Trainer` of the same model, and all call the same methods.

    Raises:
        ParallelError: model, batch sizes and `config.parallel` do not fit the processes; nothing was done.
        TrainingError: a trainable weight is not float32.
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
        tensor_plan: Mapping[str, str] | None = None,
        shard_units: Sequence[str] | None = None,
    ) -> None:
        self.model, self.rows, self.config = model, rows, config
        self.run_folder, self.code_version, self.callbacks = run_folder, code_version, callbacks
        self.identity = {**(identity or {}), "train": config.identity(), "parameters": shapes_digest(model)}
        self._device = next(model.parameters()).device
        self.ranks = join_ranks(config.parallel, self._device)
        self._told = objective if isinstance(objective, TellsSteps) else None
        self.objective = self.ranks.objective(objective)
        self.working = arrange(model, self.objective, config, self.ranks, plan=tensor_plan, units=shard_units)
        self.optimizer = CompositeOptimizer(model, config.optimizer)
        self.average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.guard = StepGuard(config.guard)
        self.loss_scale = DynamicLossScale(config.loss_scale) if config.precision == "float16" else None
        self.state = RunState(model, self.optimizer, self.guard, self.average, self.loss_scale)
        kept = config.checkpoint
        self.checkpoints = Checkpoints(run_folder, config.keep_last, keep_best=kept.keep_best, upload=kept.upload)
        self.log = RunLog(run_folder, config, writes=self.ranks.is_first)
        self._watch = RankWatch(config.watch, run_folder, model, getattr(self.ranks, "mesh", None))
        self._figures = RunFigures(config.dtype, self._device, flops_per_token, bytes_per_target)
        self._profiler = StepProfiler(profile) if profile is not None and self.ranks.is_first else None

    def fit(self) -> TrainResult:
        """Train to the last step, from the newest intact checkpoint if there is one.

        Raises:
            TrainingError: the checkpoint is of another run, or the guard halts.
            DiskFullError: a checkpoint cannot be written; older ones are intact.
            SystemExit: with 130 or 143 after SIGINT or SIGTERM on any rank, once a checkpoint is written.
        """
        self.run_folder.mkdir(parents=True, exist_ok=True)
        config = self.config
        done, saved, record = self._resume()
        if done == 0 and "rewind" in (config.guard.nonfinite, config.guard.spike):
            saved = self._save(0, {})  # there must be something to return to
        self._figures.begin()
        self.model.train()
        self.working.model.train()
        with (
            keeping_freed_memory(),
            self._watch.watching(),
            self._published(),
            stop_on_signals() as stop,
            self.log.opened(done),
            computing_in_float8(self.working.model) if config.precision == "float8" else nullcontext(),
            running_blocks(self.working.model, config.activation_checkpointing, compiled=config.compile),
            nullcontext() if self._profiler is None else self._profiler,
        ):
            while done < config.steps:
                made = self._step(done)
                if made is None:
                    done = self._rewind(done)
                    continue
                record, done = made, done + 1
                self.log.step(record)
                if self.ranks.greatest(int(self.log.failed or self.checkpoints.failed)):
                    self.log.raise_error(self.ranks.from_first)
                    self.checkpoints.wait()  # on all ranks, for one of them to raise its error on all
                signal = stop.agreed(self.ranks.greatest)
                if signal is not None and done < config.steps:
                    self._stop(done, record, signal)
                    raise SystemExit(exit_code(signal))
                if done == config.steps or done % config.checkpoint_every == 0:
                    saved = self._save(done, record)
        self._take_average()
        return TrainResult(done, record.get("loss", float("nan")), record, self.log.metrics_file, saved)

    def _step(self, step: int) -> Record | None:
        """Do update number `step`, counted from 0, and return its record; None asks to rewind."""
        begin = time.perf_counter()
        self._watch.step_begins(step + 1)
        if self._profiler is not None:
            self._profiler.step_begins()
        attempt = self._gradients(step)
        self._watch.gradients_are_there()
        verdict = self.guard.judge(
            step,
            attempt.totals.loss,
            float(attempt.norms.total),
            can_rescale=self.loss_scale is not None and self.loss_scale.can_lower,
            agree=self.ranks.greatest,
        )
        if verdict.action != "update":
            self._report(attempt, verdict)
        if self.loss_scale is not None:
            self.loss_scale.update(overflow=verdict.finding is Finding.OVERFLOW)
        record = self._apply(attempt) if verdict.updates else {"skipped": verdict.reason}
        self.optimizer.zero_grad()
        if self._told is not None:
            record |= self._told.step_done(updated=verdict.updates, total=self.ranks.total)
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
        return record | self._watch.step_ends() | self._call_back(step + 1, attempt.totals.loss)

    def _gradients(self, step: int) -> _Attempt:
        """Leave the mean gradient of a step's rows in the master weights."""
        config, size = self.config, self.config.size_at(step)
        # Dropout follows from the step and the share of its rows, not from the past.
        torch.manual_seed(config.seed * 1_000_003 + step + self.ranks.reader * 7_368_787)
        first = config.tokens_before(step) // config.sequence_length + self.guard.rows_passed
        rows = size.batch_tokens // config.sequence_length
        where = f"step {step + 1} (rows {first} to {first + rows - 1})"
        start, own = self.ranks.rows(first, rows)
        count = config.micro_batch_rows(own)
        batches = (self._batch(at, count, size.sequence_length) for at in range(start, start + own, count))
        scale = None if self.loss_scale is None else self.loss_scale.scale
        totals = accumulate_gradients(self.working, self.objective, batches, where, scale)
        norms = finish_gradients(self.model, totals.n_targets, config.gradient_clipping(), self.working.norms)
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
        layers = LayerNorms(self.model, attempt.norms, self.working.norms) if due else None
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
        measured: list[RowSums] = []
        if verdict.finding is not Finding.OVERFLOW:
            start, own = self.ranks.rows(attempt.first_row, attempt.rows)
            rows = range(start, start + own)
            measured = self.ranks.everywhere(
                measure_rows(self.working, self.objective, lambda row: self._batch(row, 1, length), rows)
            )
        bad = culprits(measured)
        ranks = culprit_ranks(bad, measured, self.ranks.everywhere(attempt.totals.own_loss_is_finite))
        event: Record = {
            "step": attempt.step + 1,
            "finding": verdict.finding.name.lower(),
            "action": verdict.action,
            "reason": verdict.reason,
            "first_row": attempt.first_row,
            "last_row": attempt.first_row + attempt.rows - 1,
            "culprits": bad,
            "culprit_ranks": ranks,
            "loss": attempt.totals.loss,
            "grad_norm": float(attempt.norms.total),
        }
        self.log.event(event)
        named = blame(bad, ranks, len(measured))
        if verdict.action == "halt":
            raise TrainingError(f"{verdict.reason} at {attempt.where}{named}", _REMEDY)
        if verdict.action != "record" and verdict.finding is not Finding.OVERFLOW:
            self.log.say(f"{verdict.action}: {verdict.reason} at {attempt.where}{named}")

    def _call_back(self, done: int, loss: float) -> Record:
        """What the callbacks measure; where weights are averaged, on the average whenever it is time to evaluate."""
        config, figures = self.config, Record()
        every = config.eval_every
        due = done == config.steps or (every is not None and done % every == 0)
        with self._averaged() if due else nullcontext():
            for callback in self.callbacks:

                def measure(model: Any, callback: Callback = callback) -> Mapping[str, float]:
                    return callback(StepEnd(done, config.steps, model, loss))

                figures |= self.working.call(measure) if due else measure(self.working.model)
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
                part(own[name].detach()).copy_(part(tensor))
            self.working.refresh()

    def _rewind(self, step: int) -> int:
        """Return to the last checkpoint and pass over the rows from there through step `step`; updates then done."""
        newest = self.checkpoints.newest()
        if newest is None:
            raise CheckpointError(f"no intact checkpoint is left to rewind to from step {step + 1}", "Start anew")
        passed = self.config.tokens_before(step + 1) - self.config.tokens_before(newest.step)
        self.state.load(newest, passed_rows=passed // self.config.sequence_length)
        self.working.refresh()
        self.log.back(newest.step, step - newest.step)
        self.log.say(f"going on from step {newest.step} with rows after those of step {step + 1}")
        return newest.step

    def _resume(self) -> tuple[int, Path, Record]:
        """Load the newest checkpoint: updates done, where from, the last record; zero when there is none."""
        newest = self.checkpoints.newest()
        step, path = 0, self.run_folder
        if newest is not None:
            require_same_run(newest, self.identity)
            self.state.load(newest)
            self.working.refresh()
            step, path = newest.step, newest.path
            self.log.say(f"going on from {path} after step {step} of {self.config.steps}")
        record = self.ranks.from_first(lambda: self.log.go_on_from(step, self.guard.events))
        return step, path, record

    def _save(self, done: int, record: Record) -> Path:
        state, asynchronous = self.state.state_dict(), self.config.checkpoint.asynchronous
        return self.checkpoints.save(
            done, state, self.identity, self.code_version, metrics=record, asynchronous=asynchronous
        )

    def _stop(self, done: int, record: Record, signal: Signals) -> None:
        """Save what there is time for, and say how to go on."""
        seconds = self.config.checkpoint.stop_deadline_seconds
        saved = self.checkpoints.save_within(
            seconds, done, self.state.state_dict(), self.identity, self.code_version, metrics=record
        )
        where = "the last checkpoint" if saved is None else saved
        self.log.say(f"stopped by {signal.name} after step {done}; run the same again to go on from {where}")

    @contextmanager
    def _published(self) -> Iterator[None]:
        """After the block, or an error in it, what is being written is there. A stop has waited as long as it may."""
        try:
            yield
        except Exception:
            self.checkpoints.wait()
            raise
        self.checkpoints.wait()


_REMEDY = (
    "The weights were not updated and the last checkpoint is intact; lower the learning rate, lengthen the warm-up, "
    "look at these rows, or let `guard` skip or rewind"
)
