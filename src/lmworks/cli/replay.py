"""`lmworks replay RUN --step N`: one step of a pretraining run made again, and shown. Changes nothing of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmworks.cli.stage import DASHES

if TYPE_CHECKING:
    from lmworks.tokenization import Tokenizer
    from lmworks.train.config import TrainConfig
    from lmworks.train.pretrain import PretrainConfig, PretrainRun
    from lmworks.train.replay import Replay
    from lmworks.train.trainer import Trainer

SHOWN_CHARACTERS = 200
"""Of a document's text in the table; `--json` has all."""


def _replay(run: Path, step: int, rows: int, as_json: bool) -> None:
    from lmworks.train.pretrain import assemble
    from lmworks.train.replay import replay_step

    built: list[PretrainRun] = []
    with _opened(run) as (config, folder):

        def make(train: TrainConfig, scratch: Path) -> Trainer:
            built.append(assemble(config.model_copy(update={"train": train}), scratch))
            return built[0].trainer

        found = replay_step(make, config.train, folder, step, rows)
    if not built[0].trainer.ranks.is_first:
        return
    if as_json:
        click.echo(json.dumps(_as_json(found, built[0].tokenizer), ensure_ascii=False))
    else:
        _show(found, built[0].tokenizer)


replay = click.Command(
    name="replay",
    callback=_replay,
    params=[
        click.Argument(["run"], type=click.Path(path_type=Path)),
        click.Option(["--step"], type=click.IntRange(min=1), required=True, help="As in metrics.jsonl: from 1."),
        click.Option(["--rows"], type=click.IntRange(min=1), default=3, show_default=True,
                     help="Rows shown where none is a culprit: those of the highest loss."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
    ],
    help="Make one step of RUN again, bit for bit: its loss, its norms by layer, and the rows that made it bad.\n\n"
    "RUN is the folder that `lmworks pretrain` writes, finished or not; start this where the run was started, and by "
    "torchrun with as many processes as it had.",
    context_settings=dict(DASHES),
)  # fmt: skip


@contextmanager
def _opened(run: Path) -> Iterator[tuple[PretrainConfig, Path]]:
    """The configuration and the folder of a run.

    One that is finished and kept no checkpoints gets, for the time of the block, a folder with its records alone: its
    steps are made again from the first.

    Raises:
        CheckpointError: there is no such run.
    """
    from lmworks.core.errors import CheckpointError
    from lmworks.core.lineage import MANIFEST, load_manifest
    from lmworks.core.progress import say
    from lmworks.train.pretrain import PretrainConfig, run_folder_of
    from lmworks.train.run_log import SETTINGS_FILE

    for folder in (run, run_folder_of(run)):
        if (settings := folder / SETTINGS_FILE).is_file():
            yield PretrainConfig.parse(json.loads(settings.read_text(encoding="utf-8"))), folder
            return
    if not (run / MANIFEST).is_file():
        raise CheckpointError(
            f"{run} is no pretraining run: neither it nor {run_folder_of(run)} has a {SETTINGS_FILE}",
            "Give the output of `lmworks pretrain`",
        )
    made = load_manifest(run)
    if made.kind != "model" or not {"tokens", "tokenizer", "train"} <= made.config.keys():
        raise CheckpointError(f"{run} was not made by `lmworks pretrain`", "Give the output of a pretraining run")
    say(f"{run} kept no checkpoints; all steps from the first are made again (`checkpoint.keep_finished` keeps them)")
    records = run.with_name(f"{run.name}.replay")
    records.mkdir(exist_ok=True)
    try:
        for file in ("metrics.jsonl", "events.jsonl"):
            if (run / file).exists():
                shutil.copyfile(run / file, records / file)
        yield PretrainConfig.parse(made.config), records
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _as_json(found: Replay, tokenizer: Tokenizer) -> dict[str, Any]:
    rows = [
        {
            "row": row.row,
            "loss": row.loss,
            "documents": row.documents,
            "texts": [tokenizer.decode(p) for p in row.pieces],
        }
        for row in found.rows
    ]
    return {**asdict(found), "rows": rows, "differences": found.differences}


def _show(found: Replay, tokenizer: Tokenizer) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lmworks.cli.terminal import stdout

    console, record = stdout(), found.record
    figures = [f"{name} {record[name]:.6g}" for name in ("loss", "grad_norm", "learning_rate") if name in record]
    console.print(f"step {found.step}, from the checkpoint of step {found.checkpoint_step}: {', '.join(figures)}")
    if found.event is not None:
        console.print(f"the guard: {found.event['action']}, {escape(str(found.event['reason']))}")
    if found.recorded is None:
        console.print("the run has no record of it")
    elif found.differences:
        for name, (before, now) in found.differences.items():
            console.print(f"[red]{name} was {before} and is now {now}[/]")
    else:
        console.print("the same in all bits as the run's record")
    if norms := record.get("norms"):
        table = Table("\nlayer", "gradient", "update", "weight", box=None, pad_edge=False)
        for layer, sizes in norms.items():
            table.add_row(escape(layer), *(f"{sizes[name]:.4g}" for name in ("gradient", "update", "weight")))
        console.print(table)
    console.print("\nculprits" if found.culprits else "\nno row is a culprit; those of the highest loss")
    for row in found.rows:
        console.print(f"[bold]row {row.row}[/], loss {row.loss:.4f}")
        names = row.documents or ["?"] * len(row.pieces)
        for name, piece in zip(names, row.pieces, strict=True):
            text = tokenizer.decode(piece)
            shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
            console.print(f"  document {escape(name)}: {escape(repr(shown))}")
