"""The stage `report`: the whole life of a model on one self-contained HTML page.

Everything shown is read from manifests and from the artifacts' own files, found by walking lineage back from
the artifacts named. Knows no stage: any artifact with metrics, curves, pictures or samples is shown.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import Field

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.lineage import WATTS_PER_CORE, Manifest, clock, write_artifact
from lmworks.core.progress import say
from lmworks.core.trace import Ancestor, trace
from lmworks.pipeline.drawing import Node, curve, graph

TEMPLATE = "page/report.html.jinja"
_MOST_PICTURE_BYTES, _MOST_SAMPLES, _MOST_CURVES, _MOST_CHARACTERS = 2_000_000, 8, 9, 400
_SAMPLE_FILES = {"samples.jsonl": _MOST_SAMPLES, "held_out.jsonl": 3, "validation.jsonl": 2, "documents.jsonl": 1,
                 "conversations.jsonl": 1}  # fmt: skip
"""Files of rows that show what an artifact holds, with how many rows to show; the first one present is shown."""


class ReportConfig(Config):
    """What to draw and where."""

    artifacts: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Artifacts at the end of the story, such as evaluations; all they were made from is drawn too."""
    output: Path
    """Folder of the report; `<output>.html` becomes a link to the page in it."""
    title: str = "The life of a language model"
    """The page's heading."""


def report(config: ReportConfig) -> Manifest:
    """Write the page and publish it beside its folder.

    Raises:
        ArtifactError: one of `artifacts` is not an artifact.
    """
    started = clock()
    life = lives(config.artifacts)
    page = render(config.title, life, config.output)
    parents = {f"artifacts.{i}": path for i, path in enumerate(config.artifacts)}
    with write_artifact(
        config.output,
        "report",
        config=config.to_dict(),
        parents=parents,
        code_version=code_version(__name__),
        started=started,
    ) as artifact:
        (artifact.folder / "report.html").write_text(page, encoding="utf-8")
        artifact.metrics["artifacts"] = len(life)
    link = config.output.with_name(config.output.name + ".html")
    _link(Path(config.output.name, "report.html"), link)
    say(f"Report: {link}")
    assert artifact.manifest is not None
    return artifact.manifest


def lives(artifacts: tuple[Path, ...]) -> list[Ancestor]:
    """Every artifact behind `artifacts`, each once, in the order they were made."""
    found: dict[Path, Ancestor] = {}
    for path in artifacts:
        for node in trace(path, check=False).walk():
            if node.manifest is not None:
                found.setdefault(node.where.resolve(), node)
    return sorted(found.values(), key=lambda node: node.manifest.created if node.manifest else "")


def render(title: str, life: list[Ancestor], output: Path) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    chapters = [_chapter(node, output) for node in life]
    manifests = [node.manifest for node in life if node.manifest is not None]
    return environment.get_template(TEMPLATE).render(
        title=title,
        chapters=chapters,
        graph=graph(_nodes(life)),
        longest=max((m.duration_seconds for m in manifests), default=0.0),
        wall=sum(m.duration_seconds for m in manifests),
        cpu=sum(m.cpu_seconds for m in manifests),
        joules=sum(m.energy_joules for m in manifests),
        watts=WATTS_PER_CORE,
    )


def _chapter(node: Ancestor, output: Path) -> dict[str, Any]:
    """Everything the page shows of one artifact."""
    made = node.manifest
    assert made is not None
    scalars, tables, samples = split(made.metrics)
    notes, note_tables, note_samples = split(made.notes)
    curves = list(_curves(node.where / "metrics.jsonl"))
    return {
        "anchor": _anchor(node),
        "name": node.where.name,
        "kind": made.kind,
        "hash": made.content_hash,
        "created": made.created,
        "code_version": made.code_version,
        "wall": made.duration_seconds,
        "cpu": made.cpu_seconds,
        "joules": made.energy_joules,
        "metrics": scalars,
        "tables": {**tables, **note_tables},
        "notes": notes,
        "curves": curves,
        "pictures": [] if curves else list(_pictures(node.where)),
        "samples": (samples + note_samples)[:_MOST_SAMPLES] or _sample_rows(node.where),
        "page": os.path.relpath(node.where / "report.html", output) if (node.where / "report.html").exists() else "",
        "config": split(made.config)[0],
        "parents": [
            {"role": a.parent.role, "name": a.where.name, "anchor": _anchor(a) if a.manifest else "", "state": a.state}
            for a in node.ancestors
        ],
    }


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Sort nested values into scalars by dotted name, tables (lists of mappings), and samples."""
    scalars: dict[str, Any] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    samples: list[dict[str, Any]] = []

    def walk(value: Any, name: str) -> None:
        leaf = name.rpartition(".")[2]
        if isinstance(value, Mapping) and name and value and all(isinstance(v, Mapping) for v in value.values()):
            tables[name] = [{"": key, **row} for key, row in value.items()]
        elif isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list) and leaf in ("samples", "examples"):
            samples.extend(item if isinstance(item, dict) else {"": item} for item in value)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables[name] = value
        elif isinstance(value, list):
            scalars[name] = ", ".join(map(str, value))
        elif value not in (None, ""):
            scalars[name] = value

    walk(values, "")
    return scalars, tables, samples


def _curves(file: Path) -> Iterator[dict[str, str]]:
    """One drawing per numeric column of a `metrics.jsonl`, losses first."""
    if not file.is_file():
        return
    series: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        for key, value in row.items():
            if key != "step" and _is_number(value):
                series.setdefault(key, []).append((float(row.get("step", number)), float(value)))
    order = sorted(series, key=lambda key: (not any(word in key for word in ("loss", "bits")), list(series).index(key)))
    for key in order[:_MOST_CURVES]:
        if len({y for _, y in series[key]}) > 1:
            yield {"name": key, "svg": curve(series[key], key)}


def _pictures(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("*.png")):
        if file.stat().st_size <= _MOST_PICTURE_BYTES:
            data = base64.b64encode(file.read_bytes()).decode()
            yield {"name": file.stem, "uri": f"data:image/png;base64,{data}"}


def _sample_rows(folder: Path) -> list[dict[str, Any]]:
    """The first rows of the file that shows best what an artifact holds, long texts cut."""
    file = next((folder / name for name in _SAMPLE_FILES if (folder / name).is_file()), None)
    if file is None:
        return []
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, _SAMPLE_FILES[file.name])]
    return [_flat_sample(row) for row in rows]


def _flat_sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as labelled texts; the turns of a conversation are labelled by role."""
    shown = {key: value for key, value in row.items() if key not in ("id", "source", "license", "messages")}
    for number, message in enumerate(row.get("messages", ())):
        shown[f"{message['role']}{' ' * number}"] = message["content"]  # spaces keep repeated roles apart
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in shown.items()
    }
    return {
        key: text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…" for key, text in texts.items()
    }


def _nodes(life: list[Ancestor]) -> list[Node]:
    return [
        Node(
            _anchor(node),
            node.where.name,
            node.manifest.kind if node.manifest else node.parent.kind,
            tuple(_anchor(artifact) for parent in node.ancestors for artifact in _artifacts(parent)),
        )
        for node in life
    ]


def _artifacts(node: Ancestor) -> list[Ancestor]:
    """The node, or what it is a part of when it is a file inside an artifact."""
    return [node] if node.manifest else [found for ancestor in node.ancestors for found in _artifacts(ancestor)]


def _anchor(node: Ancestor) -> str:
    return f"{node.where.name}-{node.parent.content_hash[:8]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _link(target: Path, link: Path) -> None:
    """Point `link` at `target` in one step, replacing an older link."""
    staging = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    staging.unlink(missing_ok=True)
    staging.symlink_to(target)
    staging.replace(link)
