"""Three stages of a few bytes each, with the shape of the real ones, for tests of everything around stages."""

from __future__ import annotations

import json
from pathlib import Path

from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.lineage import Manifest, write_artifact
from lmworks.pipeline.stages import Stage

CALLS: list[str] = []


class TextConfig(Config):
    """Makes a text."""

    text: str
    """What to write."""
    output: Path


class JoinConfig(Config):
    """Joins texts."""

    class Style(Config):
        """How to join."""

        separator: str = " "
        repeat: int = 1

    sources: tuple[Path, ...]
    """Artifacts to join."""
    style: Style = Style()
    output: Path


class WaitConfig(Config):
    """Runs until stopped."""

    model: Path
    host: str = "127.0.0.1"
    port: int = 0


def text(config: TextConfig) -> Manifest:
    CALLS.append("text")
    if config.text == "interrupt":
        raise KeyboardInterrupt
    if not config.text:
        raise DataError("the text is empty", "Give a text")
    with write_artifact(config.output, "source", config=config.to_dict(), code_version="1") as artifact:
        (artifact.folder / "text.txt").write_text(config.text)
        artifact.notes["license"] = "CC0-1.0"
    assert artifact.manifest
    return artifact.manifest


def join(config: JoinConfig) -> Manifest:
    CALLS.append("join")
    parents = {f"sources.{i}": path for i, path in enumerate(config.sources)}
    with write_artifact(config.output, "model", config=config.to_dict(), parents=parents, code_version="1") as artifact:
        parts = [(path / "text.txt").read_text() for path in config.sources] * config.style.repeat
        (artifact.folder / "text.txt").write_text(config.style.separator.join(parts))
        rows = [{"step": i, "loss": 5 / (i + 1), "tokens_per_second": 1000 + i % 7} for i in range(400)]
        (artifact.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        artifact.metrics.update(parts=len(parts), samples=[{"prompt": "a <b>", "answer": "c & d"}])
    assert artifact.manifest
    return artifact.manifest


def wait(config: WaitConfig) -> None:
    CALLS.append("wait")
    raise KeyboardInterrupt


STAGES = {
    "make text": Stage("make text", "fake_stages", "text", "TextConfig", "Make a text."),
    "join": Stage("join", "fake_stages", "join", "JoinConfig", "Join texts."),
    "wait": Stage("wait", "fake_stages", "wait", "WaitConfig", "Wait.", makes_artifact=False),
}

RECIPE = """
name: tiny
folder: {folder}
smoke:
  a.text: small
  folder: {folder}-smoke
next_steps: [Look around.]
steps:
  - {{stage: make text, name: a, with: {{text: hello}}}}
  - {{stage: make text, name: b, with: {{text: world}}}}
  - stage: join
    name: ab
    with:
      sources:
        - ${{a}}
        - ${{b}}
  - stage: wait
    name: serve
    with: {{model: "${{ab}}"}}
"""
