"""`lmworks data label`, `data agreement`: people's preferences, collected and measured. Knows no measure."""

from __future__ import annotations

from pathlib import Path

import click

from lmworks.cli.terminal import stdout


@click.command()
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the labels, new or begun.")
@click.option("--consent", type=click.Path(path_type=Path), help="Text that annotators agree to, in place of ours.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8010, show_default=True, help="0 takes a free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the orders that annotators see.")
def label(pairs: Path, output: Path, consent: Path | None, host: str, port: int, seed: int) -> None:
    """Open a page on which people say which of the two answers of each row of PAIRS is better.

    Every choice is on disk before the next is shown. The same command goes on after a stop.
    """
    from lmworks.core.errors import DataError
    from lmworks.data.labels.items import read_items
    from lmworks.data.labels.serve import serve
    from lmworks.data.labels.study import CONSENT, Study

    try:
        text = CONSENT if consent is None else consent.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{consent} cannot be read: {error}", "Give a text file in UTF-8") from None
    study = Study(output, read_items(pairs), text, seed)
    try:
        serve(study, host, port, lambda url: click.echo(f"{len(study.items)} pairs on {url}  (Ctrl-C stops)"))
    finally:
        study.close()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write preferences and answers for KTO there.")
@click.option("--min-labels", type=click.IntRange(min=1), default=1, show_default=True, help="Of an item, to count.")
def agreement(folder: Path, output: Path | None, min_labels: int) -> None:
    """Measure how far the annotators of FOLDER agree, and write what most of them prefer.

    Labels of annotators who withdrew are left out.
    """
    from rich.table import Table

    from lmworks.data.labels.publish import publish, read_labels

    labels = read_labels(folder)
    measured = labels.agreement
    left, decided = labels.left
    table = Table("measure", "value", box=None, pad_edge=False)
    for name, value in (
        ("items labeled", f"{measured.items} of {len(labels.items)}, {measured.doubly} by two and more"),
        ("labels", f"{measured.labels}, of {len(labels.state.withdrawn)} annotators withdrawn"),
        ("left answer chosen", f"{left} of {decided}"),
        ("percent agreement", _figure(measured.percent)),
        ("Fleiss' kappa", _figure(measured.fleiss)),
        ("Krippendorff's alpha", _figure(measured.alpha)),
        *((f"Cohen's kappa: {one}, {other}", _figure(value)) for (one, other), value in measured.cohen.items()),
    ):
        table.add_row(name, value)
    stdout().print(table, markup=False)
    if output is not None:
        counts = ", ".join(f"{count} {name}" for name, count in publish(folder, output, min_labels).metrics.items())
        click.echo(f"{output}: {counts}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
