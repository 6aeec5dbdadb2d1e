"""What holds a document, and what was made of it: read from manifests, from rows and from notes of past erasures.

A version of an artifact is known by its content hash, so a model trained before an erasure is told from one trained
after it. Documents stand in token stores in the order of their corpus. Changes nothing; knows no trainer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import MANIFEST, Manifest, content_hash, load_manifest, recover, tree_hash
from lmworks.data.privacy.document_rows import RowSearch, report_of, shown_with
from lmworks.data.privacy.history import (
    CONVERTED,
    Places,
    carried_over,
    digest,
    erased_since,
    joined,
    versions,
)

ROW_KINDS = ("corpus", "source", "conversations", "preferences")
TOKENS = "tokens"
MODEL_KINDS = ("model", "checkpoint", "adapter")
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?:old|tmp|ready)-\d+")


@dataclass(frozen=True)
class Holding:
    """An artifact from which the document can be removed."""

    manifest: Manifest
    places: Places
    """The rows to remove; none where its report alone shows the document, or its sources alone change."""
    digests: tuple[str, ...]
    """Of the ids of the documents whose rows these are; more than one in tokens that lag behind their corpus."""
    sources: Mapping[str, tuple[Manifest, Places]] = field(default_factory=dict)
    """Of tokens, by role: what they were made from, and the rows that are removed from it."""


@dataclass(frozen=True)
class Exposure:
    """Where a document is and where it went."""

    document: str
    holdings: tuple[Holding, ...]
    """Artifacts of rows, then tokens, each after what it was made from."""
    trained: tuple[Manifest, ...]
    """Models that saw it: to be retrained."""
    derived: tuple[Manifest, ...]
    """Tokenizers, filters, reports and whatever else was made from something that held it."""
    loose: tuple[Path, ...]
    """Files of rows that no stage keeps."""
    origins: tuple[str, ...]
    """Where its rows say they came from."""
    twins: tuple[str, ...]
    """Documents that reports show as its duplicates."""
    unreadable: tuple[str, ...]
    """Artifacts and files that could not be looked into."""

    def __bool__(self) -> bool:
        """Whether anything holds it or was made of it."""
        return bool(self.holdings or self.trained or self.derived or self.loose)


def find_exposure(document: str, root: Path) -> Exposure:
    """Look through every artifact and every file of rows below a folder.

    Args:
        document: the `id` of a row; the pieces of a document that was divided, `id-0`, `id-1`, …, belong to it, and so
            do rows that were synthesized from it.
        root: hidden folders below it are left out.

    Raises:
        ArtifactError: there is no such folder, or converted tokens in it do not say which documents they hold.
    """
    manifests, files, unreadable = _found(root)
    search = RowSearch(document)
    with_rows = [manifest for manifest in manifests if manifest.kind in ROW_KINDS]
    while True:  # rows that were synthesized from rows that were synthesized from it
        known = len(search.ids)
        rows = {manifest.path: search.rows_of(manifest) for manifest in with_rows}
        loose = {file: found for file in files if (found := search.rows_in(file))}
        if len(search.ids) == known:
            break
    holdings: list[Holding] = []
    held: dict[str, tuple[Places, Manifest]] = {}
    twins: set[str] = set()
    for manifest in with_rows:
        shown = shown_with(document, report_of(manifest))
        places = rows[manifest.path] if rows[manifest.path] or shown is not None else None
        held |= {version: (at, manifest) for version, at in versions(document, manifest, places).items()}
        twins |= shown or set()
        if places is not None:
            holdings.append(Holding(manifest, places, (digest(document),)))
    holdings += _tokens_with(document, [manifest for manifest in manifests if manifest.kind == TOKENS], held)
    exposed = {version for version, (places, _) in held.items() if any(places.values())}
    exposed |= {content_hash(file) for file in loose}
    others = [manifest for manifest in manifests if manifest.kind not in (*ROW_KINDS, TOKENS)]
    trained, derived = _made_of(exposed, others)
    return Exposure(
        document, tuple(holdings), trained, derived, tuple(loose), tuple(sorted(search.origins)), tuple(sorted(twins)),
        (*unreadable, *sorted(search.unreadable)),
    )  # fmt: skip


def _found(root: Path) -> tuple[list[Manifest], list[Path], list[str]]:
    """Artifacts, files of rows outside of them, and what cannot be read."""
    if not root.is_dir():
        raise ArtifactError(f"{root} is not a folder", "Give the folder that holds the artifacts")
    found: list[Manifest] = []
    loose: list[Path] = []
    unreadable = []
    artifacts: set[Path] = set()
    for folder, inner, files in os.walk(root):
        path = Path(folder)
        for name in [match["name"] for entry in inner if (match := _UNFINISHED.fullmatch(entry))]:
            recover(path / name)  # of a writer that was killed
        inner[:] = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        for name in files:
            if name == MANIFEST or name.endswith(f".{MANIFEST}"):
                try:
                    found.append(load_manifest(path / name.removesuffix(MANIFEST).removesuffix(".")))
                except ArtifactError as error:
                    unreadable.append(error.problem)
        if MANIFEST in files or path.parent in artifacts:
            artifacts.add(path)
        else:
            loose += [path / name for name in files if name.endswith(".jsonl")]
    return found, loose, unreadable


def _tokens_with(document: str, tokens: list[Manifest], held: dict[str, tuple[Places, Manifest]]) -> list[Holding]:
    """Tokens made of what is `held`, in steps, each after what it was made from; their versions are held then, too."""
    found: dict[Path, Holding | None] = {}
    while True:
        before = dict(found)
        for manifest in tokens:
            holding = _tokens_of(document, manifest, held)
            if manifest.path in found and holding == found[manifest.path]:
                continue
            found.pop(manifest.path, None)
            found[manifest.path] = holding  # last now: whatever it was made from is known
            for version, places in versions(document, manifest, holding.places if holding else None).items():
                if version not in held or held[version][1].path == manifest.path:  # a copy's source is the first
                    held[version] = places, manifest
        if found == before:
            return [holding for holding in found.values() if holding is not None]


def _tokens_of(document: str, manifest: Manifest, held: Mapping[str, tuple[Places, Manifest]]) -> Holding | None:
    """The document's rows in tokens, counted from those of what they were made from."""
    sources: dict[str, tuple[Manifest, Places]] = {}
    places: Places = {}
    digests = {digest(document)}
    for parent in manifest.parents:
        if parent.content_hash not in held:
            continue
        at, source = held[parent.content_hash]
        others, theirs = erased_since(source, parent.content_hash)
        at = joined(at, others)
        digests |= theirs
        sources[parent.role] = source, at
        if parent.role != "corpus":
            if CONVERTED not in manifest.notes:
                raise ArtifactError(f"{manifest.path} does not say which documents it holds", "Convert the tokens anew")
            split, _, number = parent.role.rpartition(".")
            converted = manifest.notes[CONVERTED][split]
            (rows,) = at.values()
            at = {split: carried_over(converted, int(number), rows)}
        places = joined(places, at)
    first = digest(document)
    return Holding(manifest, places, (first, *sorted(digests - {first})), sources) if sources else None


def _made_of(exposed: Collection[str], others: list[Manifest]) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
    """Models, and everything else, with one of the versions among their ancestors.

    A tokenizer is a statistic of many texts: it is named, but a model does not count as trained on what it was made of.
    """
    hashes = set(exposed)
    found: dict[Path, Manifest] = {}
    waiting = others
    while new := [manifest for manifest in waiting if hashes & _ancestors(manifest)]:
        found |= {manifest.path: manifest for manifest in new}
        hashes |= {value for manifest in new if manifest.kind != "tokenizer" for value in _hashes(manifest)}
        waiting = [manifest for manifest in waiting if manifest.path not in found]
    ordered = [found[path] for path in sorted(found)]
    models = tuple(manifest for manifest in ordered if manifest.kind in MODEL_KINDS)
    return models, tuple(manifest for manifest in ordered if manifest.kind not in MODEL_KINDS)


def _ancestors(manifest: Manifest) -> set[str]:
    """Content hashes of what an artifact was made from; a checkpoint names them among the facts of its run."""
    named = {parent.content_hash for parent in manifest.parents if parent.role != "tokenizer"}
    return named | (set(_strings(manifest.config)) if manifest.kind == "checkpoint" else set())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _hashes(manifest: Manifest) -> set[str]:
    """Of an artifact, of its files and of the folders in it, such as a model's adapter."""
    folders: dict[str, dict[str, str]] = {}
    for name, value in manifest.files.items():
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = value
    return {manifest.content_hash, *manifest.files.values(), *map(tree_hash, folders.values())}
