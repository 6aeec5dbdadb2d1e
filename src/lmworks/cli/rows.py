"""`lmworks data validate`, `data convert`, `data balance`: rows for tuning, looked at and rewritten. Knows no rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args

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

    from lmworks.data.rows.rules import REMEDIES
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
    for rule in dict.fromkeys(finding.rule for finding in found.findings[:show]):
        click.echo(f"{rule}: {REMEDIES[rule]}")
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
@click.option("--field", "fields", multiple=True, metavar="OURS=THEIRS", help="A field that SOURCE calls otherwise.")
def convert(source: Path, target: Path, layout: str, kind: str | None, fields: tuple[str, ...]) -> None:
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
    pairs = [name.partition("=") for name in fields]
    if wrong := [ours + equals for ours, equals, theirs in pairs if not (ours and theirs)]:
        raise DataError(f"--field {wrong[0]!r} names no two fields", "Write it as OURS=THEIRS")
    rows = load_rows(source, {theirs: ours for ours, _, theirs in pairs})
    made = rows if kind is None else to_kind(rows, cast("Kind", kind))
    write_file(target, made, cast("Layout", layout))
    click.echo(f"{len(rows)} rows of {source} are {len(made)} rows of {target}")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--by", required=True, multiple=True, metavar="FIELD", help="Field of the groups; several are joined by /."
)
@click.option("--share", "shares", multiple=True, metavar="VALUE=WEIGHT", help="Of each group; alike if none is given.")
@click.option("--total", default="down", show_default=True, metavar="N", help="Rows, or down (repeats none) or up.")
@click.option("--most-repeats", type=click.IntRange(min=1), help="Refuse to take a row more often.")
@click.option("--seed", type=int, default=0, show_default=True)
def balance(source: Path, target: Path, by: tuple[str, ...], shares: tuple[str, ...], total: str, **given: Any) -> None:
    """Write rows of SOURCE as TARGET so that groups have their shares, and print the account."""
    from rich.table import Table

    from lmworks.core.errors import DataError
    from lmworks.data.rows.balance import balance as shared_out
    from lmworks.data.rows.balance import group_by
    from lmworks.data.rows.files import write_file
    from lmworks.data.rows.load import load_rows

    rows = load_rows(source)
    groups = group_by(rows, *by)
    named = {str(group): group for group in groups}
    wanted = dict.fromkeys(groups, 1.0) if not shares else {}
    for name, _, weight in (share.rpartition("=") for share in shares):
        try:
            wanted[named.get(name, name)] = float(weight)
        except ValueError:
            raise DataError(f"the share {name}={weight} has no weight", "Write it as VALUE=WEIGHT") from None
    if total not in ("down", "up") and not total.isdecimal():
        raise DataError(f"the total {total!r} is no number of rows", "Give a number, down or up")
    size = int(total) if total.isdecimal() else cast("Literal['down', 'up']", total)
    made = shared_out(groups, wanted, total=size, most_repeats=given["most_repeats"], seed=given["seed"])
    write_file(target, [rows[number] for number in made.order])
    table = Table("/".join(by), "rows", "share", "taken", "most often", "left out", box=None, pad_edge=False)
    for one in made.accounts:
        counts = (one.available, f"{one.wanted:.1%}", one.taken, one.most_repeated, one.left_out)
        table.add_row(str(one.group), *map(str, counts))
    stdout().print(table, markup=False)
    click.echo(f"{len(made.order)} rows of {len(rows)} in {target}")
