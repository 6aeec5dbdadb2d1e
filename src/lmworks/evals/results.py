"""The results of an evaluation as JSON, Markdown, HTML and a table in the terminal. Knows no model."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from lmworks.evals.scores import Comparison, Score


@dataclass(frozen=True)
class Contamination:
    """How much of a task the training text holds."""

    task: str
    items: int
    testable: int
    """Items of at least 13 words."""
    overlapping: int
    """Items that share 13 consecutive words with the training text."""


@dataclass(frozen=True)
class Skip:
    """Something that was not measured."""

    task: str
    reason: str
    model: str | None = None
    """None when it concerns every model."""


@dataclass(frozen=True)
class Results:
    """Everything an evaluation found. The same inputs and seed give the same value, to the last digit."""

    seed: int
    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...]
    contamination: tuple[Contamination, ...]
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON-able form."""
        return asdict(self)


Row = Sequence[str]


def tables(results: Results) -> Iterator[tuple[str, Row, Sequence[Row]]]:
    """Title, column names and rows of each table that has any."""
    measured = list(dict.fromkeys((s.task, s.metric) for s in results.scores))
    best_first = sorted(
        results.scores, key=lambda s: (measured.index((s.task, s.metric)), -s.value if s.higher_is_better else s.value)
    )
    scores = [
        (s.task, s.metric + (" ↑" if s.higher_is_better else " ↓"), s.model, _number(s.value),
         "" if s.low is None or s.high is None else f"{_number(s.low)} to {_number(s.high)}",
         "" if s.clean_value is None else _number(s.clean_value), str(s.n))
        for s in best_first
    ]  # fmt: skip
    yield "Scores", ("task", "metric", "model", "value", "95 % interval", "without overlap", "items"), scores
    compared = [
        (c.task, c.metric, f"{c.model} - {c.against}", f"{c.difference:+.4f}", f"{c.low:+.4f} to {c.high:+.4f}",
         f"{c.p_value:.4f}")
        for c in results.comparisons
    ]  # fmt: skip
    if compared:
        yield (
            "Differences on the same items",
            ("task", "metric", "models", "difference", "95 % interval", "p"),
            compared,
        )
    overlaps = [(c.task, str(c.items), str(c.testable), str(c.overlapping)) for c in results.contamination]
    if overlaps:
        head = ("task", "items", "of 13 words or more", "sharing 13 words with the training text")
        yield "Overlap with the training text", head, overlaps
    skipped = [(s.task, s.model or "all", s.reason) for s in results.skipped]
    if skipped:
        yield "Not measured", ("task", "model", "reason"), skipped


def to_markdown(results: Results) -> str:
    """The tables as Markdown."""
    parts = ["# Evaluation"]
    for title, head, rows in tables(results):
        lines = [head, ["---"] * len(head), *rows]
        parts.append(f"## {title}\n\n" + "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))
    parts += [f"- {note}" for note in results.notes]
    return "\n\n".join(parts) + "\n"


def to_html(results: Results) -> str:
    """The tables as one self-contained page."""
    body = ["<h1>Evaluation</h1>"]
    for title, head, rows in tables(results):
        body.append(f"<h2>{html.escape(title)}</h2>\n<table>\n<thead>{_html_row(head, 'th')}</thead>")
        body += [*(_html_row(row, "td") for row in rows), "</table>"]
    body.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in results.notes) + "</ul>")
    return _PAGE.replace("BODY", "\n".join(body))


def to_rich(results: Results) -> list[Table]:
    """The tables for the terminal."""
    shown = []
    for title, head, rows in tables(results):
        table = Table(title=title, title_justify="left")
        for name in head:
            table.add_column(name)
        for row in rows:
            table.add_row(*row)
        shown.append(table)
    return shown


def _number(value: float) -> str:
    return f"{value:.4f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _html_row(cells: Row, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; display: block; overflow-x: auto; }
  table { font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: .25rem .75rem; border-bottom: 1px solid #8884; }
</style>
<body>
BODY
</body>
</html>
"""
