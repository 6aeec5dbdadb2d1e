"""The results of an evaluation as JSON, Markdown, HTML and a table in the terminal. Knows no model."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from lmworks.evals.scores import Comparison, Score


@dataclass(frozen=True)
class Contamination:
    """How much of a task the training text holds."""

    task: str
    items: int
    testable: int
    """Items of at least eight words."""
    overlapping: int
    """Items that the training text holds: 13 words in a row, or all of a shorter one."""
    examples: tuple[tuple[str, str], ...] = ()
    """Of some of them: the training document and the words."""


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


@dataclass(frozen=True)
class Grid:
    """A table of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(results: Results) -> list[Grid]:
    """The tables that have rows: text compression, tasks by model, differences, overlap, what was not measured."""
    found = [
        _compression(results.scores),
        _by_model(results.scores),
        Grid(
            DIFFERENCES,
            ("task", "metric", "models", "difference", "95 % interval", "p"),
            tuple(
                (c.task, c.metric, f"{c.model} - {c.against}", f"{c.difference:+.4f}", f"{c.low:+.4f} to {c.high:+.4f}",
                 f"{c.p_value:.4f}")
                for c in results.comparisons
            ),
        ),
        Grid(
            "Overlap with the training text",
            ("task", "items", "with 8 words or more", "found in the training text"),
            tuple((c.task, str(c.items), str(c.testable), str(c.overlapping)) for c in results.contamination),
        ),
        Grid(
            "Clean and contaminated items apart",
            ("task", "metric", "model", "all items", "clean", "contaminated"),
            tuple(
                (s.task, s.metric, s.model, f"{s.value:.4f}", "" if s.clean_value is None else f"{s.clean_value:.4f}",
                 f"{s.contaminated_value:.4f}")
                for s in results.scores
                if s.contaminated_value is not None
            ),
        ),
        Grid(
            "Not measured",
            ("task", "model", "reason"),
            tuple((s.task, s.model or "all", s.reason) for s in results.skipped),
        ),
    ]  # fmt: skip
    return [grid for grid in found if grid.rows]


DIFFERENCES = "Differences on the same items"
COMPRESSION = "bits_per_byte"
"""The metric that has a table of its own, as it alone has baselines."""


def _compression(scores: Sequence[Score]) -> Grid:
    rows = tuple(
        (s.model, f"{s.value:.4f}", _interval(s), "" if s.clean_value is None else f"{s.clean_value:.4f}", str(s.n))
        for s in sorted((s for s in scores if s.metric == COMPRESSION), key=lambda s: s.value)
    )
    head = ("model", "bits per byte", "95 % interval", "without overlapping", "documents")
    return Grid("Held-out text, best first", head, rows)


def _by_model(scores: Sequence[Score]) -> Grid:
    """A row per task and metric, a column per model."""
    others = [s for s in scores if s.metric != COMPRESSION]
    models = tuple(dict.fromkeys(s.model for s in others))
    cells = {(s.task, s.metric, s.model): s for s in others}
    rows = []
    for task, metric in dict.fromkeys((s.task, s.metric) for s in others):
        found = [cells.get((task, metric, model)) for model in models]
        shown = ["" if s is None else f"{s.value:.3f} [{s.low:.2f}, {s.high:.2f}]" for s in found]
        rows.append((task, metric, str(max(s.n for s in found if s is not None)), *shown))
    return Grid("Tasks, with 95 % intervals; higher is better", ("task", "metric", "items", *models), tuple(rows))


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"{score.low:.4f} to {score.high:.4f}"


def to_markdown(results: Results) -> str:
    """The tables and notes as Markdown."""
    parts = ["# Evaluation"]
    for grid in grids(results):
        lines = (grid.head, ("---",) * len(grid.head), *grid.rows)
        parts.append(f"## {grid.title}\n\n" + "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))
    parts.append("\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(parts) + "\n"


def to_html(results: Results) -> str:
    """The tables and notes as one self-contained page."""
    body = ["<h1>Evaluation</h1>"]
    for grid in grids(results):
        body.append(f"<h2>{html.escape(grid.title)}</h2>\n<table>\n<thead>{_html_row(grid.head, 'th')}</thead>")
        body += [*(_html_row(row, "td") for row in grid.rows), "</table>"]
    body.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in results.notes) + "</ul>")
    return _PAGE.replace("BODY", "\n".join(body))


def to_rich(results: Results) -> list[Table]:
    """The tables for the terminal, all but the long one of differences."""
    shown = []
    for grid in grids(results):
        if grid.title == DIFFERENCES:
            continue
        table = Table(title=grid.title, title_justify="left")
        for name in grid.head:
            table.add_column(escape(name))
        for row in grid.rows:
            table.add_row(*map(escape, row))
        shown.append(table)
    return shown


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _html_row(cells: Sequence[str], tag: str) -> str:
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
