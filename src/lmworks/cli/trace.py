"""`lmworks trace`: the family tree of an artifact or of an answer, as text or JSON. Knows no stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.tree import Tree

from lmworks.cli.terminal import stdout
from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import Parent
from lmworks.core.trace import Ancestor, trace_recorded
from lmworks.core.trace import trace as trace_artifact


@click.command()
@click.argument("subject", metavar="ARTIFACT|RESPONSE_ID")
@click.option(
    "--journal", type=click.Path(path_type=Path), help="The server's journal.  [default: runs/*/responses.jsonl]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--row", type=click.IntRange(min=0), help="Of a pretraining run: the documents of this row, from 0.")
@click.option("--step", type=click.IntRange(min=1), help="Of a pretraining run: the documents of this step, from 1.")
def trace(subject: str, journal: Path | None, as_json: bool, row: int | None, step: int | None) -> None:
    """Show what an artifact or an answer was made from: models, runs, data sets, sources and their licences.

    ARTIFACT is a folder that a stage made, or a file in one; RESPONSE_ID is the `id` of an answer of the server.
    Every file on the way is hashed; what is gone or has changed since is marked.
    """
    if row is not None or step is not None:
        _show_rows(Path(subject), row, step, as_json)
        return
    answer = None
    if Path(subject).exists():
        tree = trace_artifact(subject)
    else:
        answer, tree = _answer(subject, journal)
    if as_json:
        click.echo(json.dumps({"answer": answer, "made_from": tree.to_dict()}, ensure_ascii=False, indent=2))
    else:
        stdout().print(draw(tree, answer))


def _show_rows(run: Path, row: int | None, step: int | None, as_json: bool) -> None:
    """The documents of one row, or of all rows of a step."""
    from lmworks.cli.trace_rows import config_of, documents_of_rows, require_same_tokens, rows_of_step

    config = config_of(run)
    require_same_tokens(run, config)
    rows = [*([] if row is None else [row]), *([] if step is None else rows_of_step(run, config, step))]
    found = documents_of_rows(config, rows)
    if as_json:
        click.echo(json.dumps([document.to_dict() for document in found], ensure_ascii=False, indent=2))
        return
    for document in found:
        where = f"row {document.row}: [bold]{escape(document.id)}[/] {escape(document.source)}"
        stdout().print(f"{where} [cyan]{escape(document.license)}[/]")
        stdout().print(f"  [dim]{escape(repr(document.text))}[/]")


def _answer(response_id: str, journal: Path | None) -> tuple[dict[str, Any], Ancestor]:
    """The journal's record of an answer and the tree of the model that gave it."""
    from dataclasses import asdict

    from lmworks.server.journal import find_response

    journals = [journal] if journal else sorted(Path().glob("runs/*/responses.jsonl"))
    for file in journals:
        entry = find_response(file, response_id)
        if entry is not None and entry.path is not None:
            model = Parent(entry.path, "model", entry.content_hash, "model")
            return asdict(entry), trace_recorded(model, Path(entry.path))
        if entry is not None:
            raise ArtifactError(f"{response_id} was answered by {entry.model!r}, a model with no folder", "")
    searched = ", ".join(map(str, journals)) or "no journal was found"
    raise ArtifactError(
        f"{response_id} is neither a path nor a response in the journals ({searched})",
        "Give an artifact folder, or the id of an answer and --journal FILE",
    )


def draw(node: Ancestor, answer: dict[str, Any] | None = None) -> Tree:
    """The tree for a terminal; an artifact met twice is opened once."""
    seen: set[Path] = set()
    if answer is None:
        return _branch(node, Tree(_label(node)), seen)
    said = f"answer [bold]{escape(answer['id'])}[/] by {escape(answer['model'])}"
    tree = Tree(f"{said} [dim]{answer['prompt_tokens']} + {answer['completion_tokens']} tokens[/]")
    _branch(node, tree.add(_label(node)), seen)
    return tree


def _branch(node: Ancestor, tree: Tree, seen: set[Path]) -> Tree:
    repeated = node.where in seen and bool(node.ancestors)
    seen.add(node.where)
    if repeated:
        tree.add("[dim]… shown above[/]")
        return tree
    for line in _facts(node):
        tree.add(line)
    for ancestor in node.ancestors:
        _branch(ancestor, tree.add(_label(ancestor)), seen)
    return tree


def _label(node: Ancestor) -> str:
    mark = {"intact": "", "changed": " [red]changed since[/]", "gone": " [red]gone[/]"}[node.state]
    role = f"[dim]{escape(node.parent.role)}:[/] " if node.parent.role else ""
    short = node.parent.content_hash[:12]
    return f"{role}[bold]{escape(str(node.where))}[/] {node.parent.kind} [cyan]{short}[/]{mark}"


def _facts(node: Ancestor) -> list[str]:
    """When and by which code it was made, and where it came from."""
    if node.manifest is None:
        return []
    made = node.manifest
    lines = [f"[dim]made {made.created} by code {made.code_version or 'unknown'}[/]"]
    return lines + [f"[dim]{escape(key)}:[/] {escape(_short(value))}" for key, value in made.notes.items()]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}…"
