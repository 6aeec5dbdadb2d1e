"""`lmworks run RECIPE`. Knows no step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmworks.core.config import parse_scalar
from lmworks.core.errors import ConfigError

if TYPE_CHECKING:
    from lmworks.pipeline.runner import Runner


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[STEP.FIELD=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Show what would run and why; run nothing.")
@click.option("--from", "start", metavar="STEP", help="Make this step and all after it anew.")
@click.option("--only", metavar="STEP", help="Make this step alone anew.")
@click.option("--smoke", is_flag=True, help="The recipe's tiny sizes; a served model answers once, then all stops.")
def run(
    recipe: Path, overrides: tuple[str, ...], dry_run: bool, start: str | None, only: str | None, smoke: bool
) -> None:
    """Run a recipe: every stage in order, skipping what has not changed.

    A step is kept when its inputs, its fields and its code are those that made its output.

    \b
    lmworks run recipes/life.yaml --dry-run
    lmworks run recipes/life.yaml corpus.validation_fraction=0.1 folder=runs/other
    """  # noqa: D301 - click reads \b
    from lmworks.cli.training_step import require_one_process
    from lmworks.pipeline.probe import serve_once
    from lmworks.pipeline.recipe import load_recipe
    from lmworks.pipeline.runner import Runner, call_stage

    if start and only:
        raise click.UsageError("--from and --only exclude each other")
    require_one_process(
        "lmworks run", f"`lmworks launch torchrun {recipe}` prints how to start the step that can be shared"
    )
    loaded = load_recipe(recipe, dict(_override(text) for text in overrides), smoke=smoke)
    runner = Runner(loaded, recipe, start=start, only=only, service=serve_once if smoke else call_stage)
    if dry_run:
        _show(runner)
    else:
        runner.run()


def _override(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r} is not STEP.FIELD=VALUE", "Write for example corpus.seed=1")
    return key, parse_scalar(value)


def _show(runner: Runner) -> None:
    from rich.table import Table

    from lmworks.cli.terminal import stdout

    table = Table("step", "stage", "", "why", "output", box=None, pad_edge=False, header_style="bold")
    for item in runner.plan():
        verb = "[green]run[/]" if item.decision.run else "[dim]keep[/]"
        table.add_row(item.step.name, item.stage.name, verb, item.decision.reason, str(item.output or ""))
    stdout().print(table)
