"""Whether a step's output still is what its inputs, configuration and code would make. Knows no recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import MANIFEST, Manifest, content_hash, load_manifest, verify
from lmworks.pipeline.stages import Stage, input_paths


@dataclass(frozen=True)
class Decision:
    """Whether to run a step, and why, in words for the person at the terminal."""

    run: bool
    reason: str


def decide(stage: Stage, config: Config, remade: Mapping[Path, str] | None = None) -> Decision:
    """Compare a step with the manifest of its output.

    Args:
        stage: the row of the stage table.
        config: the step's configuration.
        remade: outputs that will be made anew before this step, by resolved path, with their step names; given
            when planning, empty when everything before has already run.
    """
    if not stage.makes_artifact:
        return Decision(True, "runs until it is stopped")
    output = Path(config.to_dict()["output"])
    for field, path in input_paths(config).items():
        for made, name in (remade or {}).items():
            if path.resolve() == made or made in path.resolve().parents:
                return Decision(True, f"{field}: {name} is made first")
    if not (output / MANIFEST).is_file():
        return Decision(True, "not made yet")
    try:
        manifest = load_manifest(output)
    except ArtifactError as error:
        return Decision(True, error.problem)
    reason = _config_change(manifest, config) or _input_change(manifest, config) or _code_change(manifest, stage)
    if reason is None:
        try:
            verify(output)
        except ArtifactError as error:
            reason = error.problem
    return Decision(True, reason) if reason else Decision(False, "unchanged")


def _code_change(manifest: Manifest, stage: Stage) -> str | None:
    return None if manifest.code_version == code_version(stage.module) else f"the code of {stage.module} changed"


def _config_change(manifest: Manifest, config: Config) -> str | None:
    """The first differing field, as `train.steps: 100 -> 200`."""
    was = _flat(manifest.config)
    now = _flat(json.loads(json.dumps(config.to_dict())))
    for key in sorted({*was, *now} - {"output"}):
        if was.get(key) != now.get(key):
            return f"{key}: {_short(was.get(key))} -> {_short(now.get(key))}"
    return None


def _input_change(manifest: Manifest, config: Config) -> str | None:
    """The first input whose content is not the recorded one."""
    recorded = {
        (manifest.path.parent / parent.path).resolve(): parent.content_hash for parent in manifest.parents
    }  # an absolute parent path stays absolute under `/`
    for field, path in input_paths(config).items():
        now = content_hash(path)
        if now != recorded.get(path.resolve(), "absent"):
            return f"{field}: {path} {'is gone' if now == 'absent' else 'changed'}"
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
