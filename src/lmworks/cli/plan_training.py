"""`lmworks plan train`: what a mesh would need and exchange in a step, without having it. Starts nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmworks.cli.training_step import ARGUMENTS, training_step

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.train.dry_run import DryRun


def _plan(
    recipe: Path, words: tuple[str, ...], smoke: bool, ranks: int, vocab_size: int | None, memory: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    from lmworks.train.dry_run import GIB, dry_run, require_memory

    *_, config = training_step(recipe, words, smoke=smoke)
    stage: Any = config
    plan = dry_run(_model(stage, vocab_size), stage.train, ranks)
    if as_json:
        click.echo(json.dumps(plan.to_dict()))
    else:
        _show(plan, ranks)
    if memory is not None:
        require_memory(plan.memory, int(memory * GIB))


train = click.Command(
    name="train",
    callback=_plan,
    params=[
        *ARGUMENTS,
        click.Option(["--ranks"], type=click.IntRange(min=1), default=1, show_default=True, help="Processes."),
        click.Option(["--vocab-size"], type=click.IntRange(min=1), help="By default that of the tokenizer's folder."),
        click.Option(["--memory"], type=float, metavar="GIB", help="Fail if a rank would need more than so much."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
    ],
    help="Show memory, communication and operations of one step of RECIPE's training on a mesh that need not exist.\n\n"
    "\b\nlmworks plan train recipes/life.yaml base --ranks 8 base.train.parallel.shard=8",
)


def _model(stage: Any, vocab_size: int | None) -> ModelConfig:
    """What the step would build."""
    from lmworks.core.errors import ConfigError

    if vocab_size is None:
        if not Path(stage.tokenizer).exists():
            raise ConfigError(
                f"the size of the vocabulary is not known: there is no tokenizer in {stage.tokenizer} yet",
                "Give --vocab-size, or make the earlier steps",
            )
        from lmworks.tokenization import load_tokenizer

        vocab_size = load_tokenizer(stage.tokenizer).vocab_size
    made: ModelConfig = stage.model.to_model_config(
        vocab_size=vocab_size, sequence_length=stage.train.sequence_length, bos_token_id=None, eos_token_ids=()
    )
    return made


def _show(plan: DryRun, ranks: int) -> None:
    from rich.table import Table

    from lmworks.cli.model import readable_bytes
    from lmworks.cli.terminal import stdout

    console, work, memory = stdout(), plan.work, plan.to_dict()["memory"]
    degrees = [
        f"{k} {v}" for k, v in plan.parallel.to_dict().items() if isinstance(v, int) and v > 1 and k != "zero_stage"
    ]
    console.print(
        f"{plan.parameters / 1e6:,.2f}M parameters on {ranks} {'rank' if ranks == 1 else 'ranks'} "
        f"({', '.join(degrees) or 'one process'}): {work.micro_batches} x {work.tokens:,} tokens on each; "
        f"{plan.flops / 1e12:,.3g} TFLOP a step\n"
    )
    held = Table("memory of a rank", "bytes", box=None, pad_edge=False, header_style="bold")
    held.columns[1].justify = "right"
    for name, size in memory.items():
        if size:
            held.add_row(name.replace("_", " "), readable_bytes(size))
    console.print(held)
    if not plan.exchanges:
        console.print("\nNothing is exchanged.")
        return
    sent = Table("\nexchanged in a step", "collective", "group", "ranks", "calls", "bytes", box=None, pad_edge=False)
    for column in sent.columns[3:]:
        column.justify = "right"
    for row in plan.exchanges:
        sent.add_row(row.what, row.collective, row.group, str(row.ranks), f"{row.calls:,}", readable_bytes(row.bytes))
    console.print(sent)
