"""`lmworks prove`: run a set of measurements and show each beside its bound. Knows no measurement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from lmworks.proofs.families import FamilyRow
    from lmworks.proofs.row import Row

SUITES = ("core", "families", "checkpoints", "engine", "parallel")
SEEDED = ("families", "engine", "parallel")


@click.command()
@click.argument("suite", default="core")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on the last line.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Of the random models.  [default: 0]")
@click.option("--only", default=None, help="families: measure this family alone.")
@click.option("--long", is_flag=True, help="parallel: every objective under every form.")
@click.option(
    "--write",
    default=None,
    type=click.Path(dir_okay=False, path_type=Path),
    help="families, parallel: write the page.",
)
def prove(suite: str, as_json: bool, seed: int, only: str | None, long: bool, write: Path | None) -> None:
    """Measure this package's promises on this machine; exit 1 when one does not hold.

    SUITE is `core`: train-serve gap, parity, exact resume, accumulation, packing; `families`: every model family
    against the reference library; `checkpoints`: published weights against theirs; `engine`: the same answer in any
    company, draws from the right distribution, nothing left behind; or `parallel`: the gradient of one process from
    four, however they share the work.
    """
    from lmworks.cli.terminal import stdout

    if not suite.isidentifier() or find_spec(f"lmworks.proofs.{suite}") is None:
        raise click.UsageError(f"there is no suite {suite!r}; known: {', '.join(SUITES)}")
    if suite != "families" and (only is not None or (write is not None and suite != "parallel")):
        raise click.UsageError("--only and --write belong to the suite 'families'")
    if long and suite != "parallel":
        raise click.UsageError("--long belongs to the suite 'parallel'")
    if seed and suite not in SEEDED:
        raise click.UsageError(f"--seed belongs to the suites {', '.join(map(repr, SEEDED))}")
    if write is not None and only is not None:
        raise click.UsageError("--write needs every family; leave --only out")
    if suite == "families":
        rows: Sequence[Row] = _prove_families(seed, only, write, shown=not as_json)
    else:
        measure = import_module(f"lmworks.proofs.{suite}").prove
        if suite == "parallel":
            rows = measure(seed, long)
            if write is not None:
                from lmworks.proofs.parallel_page import parallel_page

                write.write_text(parallel_page(rows, long=long), encoding="utf-8")
        else:
            rows = measure(seed) if suite in SEEDED else measure()
        if not as_json:
            stdout().print(_table(rows))
    if as_json:
        click.echo(json.dumps({"rows": [row.to_dict() for row in rows]}))
    if not all(row.ok for row in rows):
        raise click.exceptions.Exit(1)


def _prove_families(seed: int, only: str | None, write: Path | None, *, shown: bool) -> Sequence[Row]:
    from lmworks.cli.terminal import stdout
    from lmworks.proofs.families import CHECKS, prove
    from lmworks.proofs.families_page import families_page

    rows = prove(seed, only)
    if shown:
        stdout().print(_families(CHECKS, rows))
        for row in rows:
            if not row.ok:
                stdout().print(f"[red]FAILS[/] {row.case}: {row.value:.3g}, bound {row.bound:.3g} ({row.note})")
    if write is not None:
        write.write_text(families_page(rows), encoding="utf-8")
    return rows


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table("case", "value", "bound", "", "", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        verdict = "[green]holds[/]" if row.ok else "[red]FAILS[/]"
        table.add_row(row.case, f"{row.value:.3g}", f"{row.rule} {row.bound:.3g}", verdict, row.note)
    return table


def _families(checks: Sequence[str], rows: Sequence[FamilyRow]) -> Table:
    """One line per family, a column per check."""
    from rich.table import Table

    table = Table("family", *checks, box=None, pad_edge=False, header_style="bold")
    for family in dict.fromkeys(row.family for row in rows):
        measured = {row.check: row for row in rows if row.family == family}
        cells = [
            f"[{'green' if measured[c].ok else 'red'}]{measured[c].value:.2g}[/]" if c in measured else "–"
            for c in checks
        ]
        table.add_row(family, *cells)
    return table
