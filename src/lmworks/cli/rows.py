"""`lmworks data validate` and `lmworks data convert`: rows for tuning, looked at and rewritten. Knows no rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import click

from lmworks.cli.terminal import stdout


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer that counts tokens.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of a row.")
@click.option("--show", type=click.IntRange(min=0), default=50, show_default=True, help="Findings to list; all count.")
@click.pass_context
def validate(ctx: click.Context, /, files: tuple[Path, ...], show: int, **given: Any) -> None:
    """Look for faults in the rows of FILES, the splits of one data set.

    Every fault is listed with its line. The status is 1 where rows should not be tuned on, else 0.
    """
    from rich.table import Table

    from lmworks.data.rows.validate import validate as look
    from lmworks.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(given["tokenizer"]) if given["tokenizer"] else None
    found = look(files, tokenizer, given["max_tokens"])
    table = Table("place", "", "rule", "finding", box=None, pad_edge=False)
    for finding in found.findings[:show]:
        table.add_row(str(finding.place), "error" if finding.serious else "note", finding.rule, finding.message)
    console = stdout()
    if table.rows:
        console.print(table, markup=False)
    if len(found.findings) > show:
        click.echo(f"and {len(found.findings) - show} more; --show lists them")
    for file in files:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds[file].most_common())
        click.echo(f"{file}: {found.rows[file]} rows ({kinds or 'none readable'})")
    click.echo(f"{len(found.errors)} errors, {len(found.findings) - len(found.errors)} notes")
    ctx.exit(1 if found.errors else 0)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--layout", default="trl", show_default=True, metavar="NAME", help="trl, openai, sharegpt or alpaca.")
@click.option("--kind", metavar="TYPE", help="Type of the rows, such as preference; they keep theirs if not given.")
def convert(source: Path, target: Path, layout: str, kind: str | None) -> None:
    """Write the rows of SOURCE as TARGET, whose ending decides the kind of file.

    Where a row would lose something nothing is written and the row is named.
    """
    from lmworks.core.config import nearest
    from lmworks.core.errors import DataError
    from lmworks.data.rows.convert import convert as to_kind
    from lmworks.data.rows.files import write_file
    from lmworks.data.rows.layouts import Layout
    from lmworks.data.rows.load import load_rows
    from lmworks.data.rows.values import Kind

    for given, known in ((layout, get_args(Layout)), (kind, get_args(Kind))):
        if given is not None and given not in known:
            raise DataError(f"{given!r} is not known{nearest(given, list(known))}", "See lmworks data convert --help")
    rows = load_rows(source)
    made = rows if kind is None else to_kind(rows, cast("Kind", kind))
    write_file(target, made, cast("Layout", layout))
    click.echo(f"{len(rows)} rows of {source} are {len(made)} rows of {target}")
