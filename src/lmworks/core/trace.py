"""From an artifact, or from an answer, back to everything behind it. Reads manifests alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import (
    MANIFEST,
    Manifest,
    Parent,
    content_hash,
    load_manifest,
    manifest_file,
    parent_of,
    verify,
)

State = Literal["intact", "changed", "gone"]


@dataclass(frozen=True)
class Ancestor:
    """One node of a family tree."""

    parent: Parent
    """As the child recorded it."""
    where: Path
    state: State
    """`changed`: what is there now is not what was used; its own parents are then not followed."""
    manifest: Manifest | None = None
    """None for a plain file or folder, and for what is gone or changed."""
    ancestors: Sequence[Ancestor] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON-able form, parents nested."""
        made = self.manifest
        facts: dict[str, Any] = {"role": self.parent.role, "kind": self.parent.kind, "path": str(self.where),
                                 "content_hash": self.parent.content_hash, "state": self.state}  # fmt: skip
        if made is not None:
            facts |= {"created": made.created, "code_version": made.code_version, "config": made.config,
                      "metrics": made.metrics, "notes": made.notes}  # fmt: skip
        return {**facts, "parents": [ancestor.to_dict() for ancestor in self.ancestors]}

    def walk(self) -> Iterator[Ancestor]:
        """This node and all behind it, each artifact once, parents first."""
        seen: set[Path] = set()

        def visit(node: Ancestor) -> Iterator[Ancestor]:
            if node.where.resolve() in seen:
                return
            seen.add(node.where.resolve())
            for ancestor in node.ancestors:
                yield from visit(ancestor)
            yield node

        return visit(self)


def trace(path: Path | str, *, check: bool = True) -> Ancestor:
    """Walk from an artifact to everything it was made from.

    Args:
        path: an artifact, or a file or folder inside one.
        check: hash every file on the way; otherwise manifests are believed.

    Raises:
        ArtifactError: nothing at `path` was made by a stage.
    """
    path = Path(path)
    if _enclosing(path) is None:
        load_manifest(path)  # says what is missing
    return trace_recorded(parent_of(path, path), path, check=check)


def trace_recorded(parent: Parent, where: Path, *, check: bool = True) -> Ancestor:
    """Walk from something recorded elsewhere, such as the model an answer came from, to what is behind it."""
    return _node(parent, where, check, {})


def _node(parent: Parent, where: Path, check: bool, states: dict[tuple[Path, str], State]) -> Ancestor:
    key = where.resolve(), parent.content_hash
    if key not in states:  # an ancestor shared by several children is read once
        states[key] = _state(where, parent.content_hash, check)
    state = states[key]
    if state != "intact":
        return Ancestor(parent, where, state)
    if manifest_file(where).exists():
        manifest = load_manifest(where)
        ancestors = tuple(_node(p, _located(where, p), check, states) for p in manifest.parents)
        return Ancestor(parent, where, state, manifest, ancestors)
    if (artifact := _enclosing(where)) is not None:
        made = parent_of(artifact, artifact.parent, "part of")
        return Ancestor(parent, where, state, None, (_node(made, artifact, check, states),))
    return Ancestor(parent, where, state)


def _enclosing(where: Path) -> Path | None:
    """The artifact folder whose manifest lists `where`, a file or a folder with files, or None."""
    for folder in where.parents:
        if (folder / MANIFEST).exists():
            name = where.relative_to(folder).as_posix()
            listed = any(file == name or file.startswith(f"{name}/") for file in load_manifest(folder).files)
            return folder if where.exists() and listed else None
    return None


def _state(where: Path, expected: str, check: bool) -> State:
    if not where.exists():
        return "gone"
    try:
        if content_hash(where) != expected:
            return "changed"
        if check and manifest_file(where).exists():
            verify(where)
    except ArtifactError:
        return "changed"
    return "intact"


def _located(child: Path, parent: Parent) -> Path:
    """Where a recorded parent lies: its path is relative to the folder that holds the child, or absolute."""
    return Path(parent.path) if Path(parent.path).is_absolute() else _tidy(child.parent / parent.path)


def _tidy(path: Path) -> Path:
    """The path without `x/..` detours, relative to the working folder where it lies below it."""
    resolved = path.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved
