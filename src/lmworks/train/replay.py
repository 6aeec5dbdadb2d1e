"""One step of a run made again, bit for bit, to look at it: its loss, its gradients by layer, the loss of each row.

A replay is the run itself in a folder beside it: it begins with a copy of the checkpoint before the step, makes the
same steps and stops. Nothing of the run is changed. Knows no stage: whoever built the run's trainer builds this one's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lmworks.core.errors import CheckpointError, TrainingError
from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import ArrangedRows
from lmworks.train.callbacks import StepEnd
from lmworks.train.checkpoint import PREFIX
from lmworks.train.checkpoint_config import CheckpointConfig
from lmworks.train.config import TrainConfig
from lmworks.train.culprits import MOST, culprits, measure_rows
from lmworks.train.events import read_events
from lmworks.train.metrics import read_metrics
from lmworks.train.sinks import TrackingConfig
from lmworks.train.sizes import cut
from lmworks.train.trainer import Trainer

FOLDER = ".replay"
"""In the run's folder, while a replay goes on."""
COMPARED = ("loss", "grad_norm", "learning_rate", "tokens")
"""Of a step's record: what follows from the step alone, and not from the clock."""


@runtime_checkable
class TellsDocuments(Protocol):
    """Rows that know what they were packed from."""

    def documents(self, row: int) -> list[str]:
        """A name for each document in a row, in their order."""
        ...


@dataclass(frozen=True)
class ReplayedRow:
    """One row of the step."""

    row: int
    loss: float
    """Nats per target, of the row alone and without dropout, with the weights that the step saw."""
    documents: list[str]
    pieces: list[list[int]]
    """Token ids of each document's part in the row, before an objective arranges them."""


@dataclass(frozen=True)
class Replay:
    """A step made again."""

    step: int
    checkpoint_step: int
    """Updates of the checkpoint that it began with."""
    record: dict[str, Any]
    """As in `metrics.jsonl`, with norms by layer; `{}` for a step that was rewound or ended the run."""
    event: dict[str, Any] | None
    """What the guard found, if anything."""
    recorded: dict[str, Any] | None
    """The run's own record of the step; None where it has none."""
    culprits: list[int]
    """Rows whose loss alone is not finite, or far above the others."""
    rows: list[ReplayedRow] = field(default_factory=list)
    """The culprits; where there are none, the rows with the highest loss."""

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Figures that came out otherwise, as (recorded, replayed); empty when the step was the same in all bits."""
        before = self.recorded or self.record
        pairs = {name: (before.get(name), self.record.get(name)) for name in COMPARED}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class _Reached(Exception):
    """The step that was asked for is done; the one after it too, so that its record is written."""


def replay_step(
    make: Callable[[TrainConfig, Path], Trainer], config: TrainConfig, run_folder: Path, step: int, worst: int = 3
) -> Replay:
    """Make a step of a run again. On a mesh all ranks call this, with as many ranks as the run had.

    Args:
        make: builds the run's trainer with a configuration and a folder; without callbacks.
        config: of the run.
        run_folder: the run's.
        step: as in `metrics.jsonl`: the first is 1.
        worst: rows that are shown where none is a culprit.

    Raises:
        TrainingError: the run has no such step.
        CheckpointError: no checkpoint before the step is left.
    """
    if not 0 < step <= config.steps:
        raise TrainingError(f"step {step} is none of the run's 1 to {config.steps}")
    if not run_folder.is_dir():
        raise CheckpointError(f"{run_folder} is not there", "Give the folder of a run's checkpoints")
    scratch = run_folder / FOLDER
    trainer = make(_quiet(config), scratch)
    losses: dict[int, float] = {}

    def look() -> None:
        losses.update(_row_losses(trainer, step))

    def after(end: StepEnd) -> Mapping[str, float]:
        if end.step == step - 1:
            look()
        if end.step > step:
            raise _Reached
        return {}

    trainer.callbacks = (after,)
    begin = trainer.ranks.from_first(lambda: _copy(run_folder, scratch, step, config.checkpoint_every))
    if begin is None:
        raise CheckpointError(
            f"{run_folder} keeps no checkpoint before step {step}",
            "A larger `keep_last` keeps more",
        )
    try:
        if begin == step - 1:
            if (newest := trainer.checkpoints.newest()) is not None:
                trainer.state.load(newest)
                trainer.working.refresh()
            look()
        try:
            trainer.fit()
        except _Reached:
            pass
        except TrainingError:
            if not trainer.ranks.from_first(lambda: _event(scratch, step)):
                raise  # another step than the one that is asked for
        found = trainer.ranks.from_first(lambda: (_record(scratch, step), _event(scratch, step)))
        recorded = trainer.ranks.from_first(lambda: _record(run_folder, step))
    finally:
        trainer.ranks.from_first(lambda: shutil.rmtree(scratch, ignore_errors=True))
    record, event = found
    bad = culprits([{row: (loss, 1.0) for row, loss in losses.items()}])
    highest = sorted(losses, key=lambda row: losses[row], reverse=True)
    shown = [_row(trainer, row, losses[row]) for row in (bad or highest[: min(worst, MOST)])]
    return Replay(step, begin, record or {}, event, recorded, bad, shown)


def _quiet(config: TrainConfig) -> TrainConfig:
    """The same run, measured at every step, that tells nobody else and keeps nothing."""
    changes: dict[str, Any] = {
        "norms_every": 1,
        "eval_every": None,
        "tracking": TrackingConfig(),
        "checkpoint": CheckpointConfig(asynchronous=False),
    }
    if "rewind" not in (config.guard.nonfinite, config.guard.spike):  # else they decide where a rewind leads
        changes["checkpoint_every"] = config.steps
    return config.model_copy(update=changes)


def _copy(run_folder: Path, scratch: Path, step: int, first: int) -> int | None:
    """Put the newest checkpoint before a step into a fresh folder; updates it holds.

    A run that has none yet is made again from its beginning, 0, and so is a step up to the `first` checkpoint; of a run
    that has only later ones, None.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    names = [path.name.removeprefix(PREFIX) for path in run_folder.glob(f"{PREFIX}*")]
    before = [int(name) for name in names if name.isdecimal() and int(name) < step]
    begin = max(before, default=0)
    if names and not before and step > first:
        return None
    scratch.mkdir()
    if before:
        name = f"{PREFIX}{begin:08d}"
        shutil.copytree(run_folder / name, scratch / name, copy_function=_link)
    for file in ("metrics.jsonl", "events.jsonl"):
        if (run_folder / file).exists():
            shutil.copyfile(run_folder / file, scratch / file)
    return begin


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target


def _row_losses(trainer: Trainer, step: int) -> dict[int, float]:
    """Loss per target of each row of a step, with the weights that the trainer has now."""
    config, size = trainer.config, trainer.config.size_at(step - 1)
    first = config.tokens_before(step - 1) // config.sequence_length + trainer.guard.rows_passed
    start, own = trainer.ranks.rows(first, size.batch_tokens // config.sequence_length)

    def row(number: int) -> Batch:
        batch = trainer.rows.rows(number, 1)
        if size.sequence_length < config.sequence_length:
            batch = cut(batch, size.sequence_length)
        return batch.to(next(trainer.model.parameters()).device)

    sums: dict[int, tuple[float, float]] = {}
    measured = measure_rows(trainer.working, trainer.objective, row, range(start, start + own))
    for found in trainer.ranks.everywhere(measured):
        for number, (loss_sum, targets) in found.items():
            before = sums.get(number, (0.0, 0.0))
            sums[number] = before[0] + loss_sum, before[1] + targets
    return {number: loss_sum / targets for number, (loss_sum, targets) in sums.items() if targets > 0}


def _row(trainer: Trainer, row: int, loss: float) -> ReplayedRow:
    rows = trainer.rows.source if isinstance(trainer.rows, ArrangedRows) else trainer.rows
    batch = rows.rows(row, 1)
    bounds = batch.cu_seqlens.tolist()
    pieces = [batch.input_ids[begin:end].tolist() for begin, end in pairwise(bounds)]
    documents = rows.documents(row) if isinstance(rows, TellsDocuments) else []
    return ReplayedRow(row, loss, documents, pieces)


def _record(folder: Path, step: int) -> dict[str, Any] | None:
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["step"] == step]
    return records[-1] if records else None


def _event(folder: Path, step: int) -> dict[str, Any] | None:
    events = [event for event in read_events(folder / "events.jsonl") if event.get("step") == step]
    return events[-1] if events else None
