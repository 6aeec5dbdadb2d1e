"""`lmworks prove`: run a set of measurements and show each beside its bound. Knows no measurement."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec

import click


@click.command()
@click.argument("suite", default="core")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on the last line.")
def prove(suite: str, as_json: bool) -> None:
    """Measure this package's promises on this machine; exit 1 when one does not hold.

    SUITE is `core`: train-serve gap, parity, exact resume, accumulation, packing.
    """
    from rich.table import Table

    from lmworks.cli.terminal import stdout

    if not suite.isidentifier() or find_spec(f"lmworks.proofs.{suite}") is None:
        raise click.UsageError(f"there is no suite {suite!r}; try: lmworks prove core")
    rows = import_module(f"lmworks.proofs.{suite}").prove()
    if as_json:
        click.echo(json.dumps({"rows": [row.to_dict() for row in rows]}))
    else:
        table = Table("case", "value", "bound", "", "", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            verdict = "[green]holds[/]" if row.ok else "[red]FAILS[/]"
            table.add_row(row.case, f"{row.value:.3g}", f"{row.rule} {row.bound:.3g}", verdict, row.note)
        stdout().print(table)
    if not all(row.ok for row in rows):
        raise click.exceptions.Exit(1)
