"""What holds a document, and what was made of it: read from manifests, from corpora and from notes of past erasures.

A version of an artifact is known by its content hash, so a model trained before an erasure is told from one trained
after it. Documents stand in token stores in the order of their corpus. Changes nothing; knows no trainer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import MANIFEST, Manifest, load_manifest

TEXT_KINDS = ("corpus", "source")
TOKENS = "tokens"
MODEL_KINDS = ("model", "checkpoint", "adapter")
ERASED = "erased"
"""The key of a manifest's notes under which erasures are remembered, documents by the hash of their id."""

Places = dict[str, dict[int, int]]
"""By split (the stem of a file of rows): the numbers of a document's rows and the bytes of their texts."""


@dataclass(frozen=True)
class Holding:
    """An artifact from which the document can be removed."""

    manifest: Manifest
    places: Places
    digests: tuple[str, ...]
    """Of the ids of the documents whose rows these are; more than one in tokens that lag behind their corpus."""
    corpus: Manifest | None = None
    """Of tokens: the corpus that they were made from."""


@dataclass(frozen=True)
class Exposure:
    """Where a document is and where it went."""

    document: str
    holdings: tuple[Holding, ...]
    """Sources and corpora, then token stores."""
    trained: tuple[Manifest, ...]
    """Models that saw it: to be retrained."""
    derived: tuple[Manifest, ...]
    """Tokenizers, reports and whatever else was made from something that held it."""
    origins: tuple[str, ...]
    """Where its rows say they came from."""
    unreadable: tuple[str, ...]
    """Artifacts that could not be looked into."""

    def __bool__(self) -> bool:
        """Whether anything holds it or was made of it."""
        return bool(self.holdings or self.trained or self.derived)


def find_exposure(document: str, root: Path) -> Exposure:
    """Look through every artifact below a folder.

    Args:
        document: the `id` of a row; the pieces of a document that was divided, `id-0`, `id-1`, …, belong to it.
        root: hidden folders below it are left out.

    Raises:
        ArtifactError: there is no such folder.
    """
    manifests, unreadable = _manifests(root)
    holdings: list[Holding] = []
    held: dict[str, tuple[Places, Manifest]] = {}
    origins: set[str] = set()
    for manifest in (m for m in manifests if m.kind in TEXT_KINDS):
        places, sources = _rows_of(document, manifest)
        origins |= sources
        held |= {version: (at, manifest) for version, at in _versions(document, manifest, places).items()}
        if places:
            holdings.append(Holding(manifest, places, (digest(document),)))
    for manifest in (m for m in manifests if m.kind == TOKENS):
        parent = next((p for p in manifest.parents if p.role == "corpus" and p.content_hash in held), None)
        places, corpus = held[parent.content_hash] if parent else ({}, None)
        held |= {version: (at, manifest) for version, at in _versions(document, manifest, places).items()}
        if parent is not None and corpus is not None:
            places, digests = _with_earlier(document, places, corpus, parent.content_hash)
            holdings.append(Holding(manifest, places, digests, corpus))
    trained, derived = _made_of(set(held), [m for m in manifests if m.kind not in (*TEXT_KINDS, TOKENS)])
    return Exposure(document, tuple(holdings), trained, derived, tuple(sorted(origins)), tuple(unreadable))


def digest(document: str) -> str:
    """How notes name a document: ids may themselves say something about a person."""
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def belongs(document: str, identity: Any) -> bool:
    """Whether a row's id is the document's or one of its pieces'."""
    return identity == document or bool(re.fullmatch(rf"{re.escape(document)}-\d+", str(identity)))


def note(holding: Holding) -> dict[str, Any]:
    """What an erased artifact remembers: which version held which rows."""
    listed = {split: sorted(map(list, rows.items())) for split, rows in holding.places.items()}
    return {"documents": list(holding.digests), "version": holding.manifest.content_hash, "places": listed}


def _manifests(root: Path) -> tuple[list[Manifest], list[str]]:
    if not root.is_dir():
        raise ArtifactError(f"{root} is not a folder", "Give the folder that holds the artifacts")
    found, unreadable = [], []
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if MANIFEST in files:
            try:
                found.append(load_manifest(Path(folder)))
            except ArtifactError as error:
                unreadable.append(error.problem)
    return found, unreadable


def _rows_of(document: str, manifest: Manifest) -> tuple[Places, set[str]]:
    """The document's rows in an artifact of rows, and where they came from."""
    wanted = json.dumps(document, ensure_ascii=False)[1:-1].encode()
    places: Places = {}
    origins: set[str] = set()
    for name in manifest.files:
        if not name.endswith(".jsonl") or "/" in name:
            continue
        with (manifest.path / name).open("rb") as source:
            for number, line in enumerate(source):
                if wanted in line and belongs(document, (row := json.loads(line)).get("id")):
                    places.setdefault(name.removesuffix(".jsonl"), {})[number] = len(row.get("text", "").encode())
                    origins.add(str(row.get("source", "")))
    return places, origins - {""}


def _versions(document: str, manifest: Manifest, places: Places) -> dict[str, Places]:
    """Every version of an artifact that holds or held the document, by content hash, with the rows it had there."""
    held = {manifest.content_hash: places} if places else {}
    wanted = digest(document)
    for erased in reversed(manifest.notes.get(ERASED, [])):
        removed = _removed(erased)
        places = _before(places, removed)
        if wanted in erased["documents"]:
            places = _joined(places, removed)
        if places:
            held[erased["version"]] = places
    return held


def _with_earlier(document: str, places: Places, corpus: Manifest, version: str) -> tuple[Places, tuple[str, ...]]:
    """The rows of a version of a corpus, with those of whatever else was erased from it since.

    Tokens of that version still hold them all where an erasure was interrupted, and must lose them all to become tokens
    of the present version.
    """
    since: list[dict[str, Any]] = []
    for erased in reversed(corpus.notes.get(ERASED, [])):
        since.append(erased)
        if erased["version"] == version:
            break
    else:
        since = []  # the tokens are of the present version
    earlier: Places = {}
    for erased in since:
        earlier = _joined(_before(earlier, _removed(erased)), _removed(erased))
    others = {name for erased in since for name in erased["documents"]}
    return _joined(places, earlier), (digest(document), *sorted(others - {digest(document)}))


def _removed(erased: Mapping[str, Any]) -> Places:
    return {split: dict(rows) for split, rows in erased["places"].items()}


def _joined(places: Places, others: Places) -> Places:
    return {split: {**places.get(split, {}), **others.get(split, {})} for split in sorted({*places, *others})}


def _before(places: Places, removed: Mapping[str, Mapping[int, int]]) -> Places:
    """The numbers that rows had before others were removed."""
    earlier: Places = {}
    for split, rows in places.items():
        for number, size in rows.items():
            place = number
            for gone in sorted(removed.get(split, ())):
                place += gone <= place
            earlier.setdefault(split, {})[place] = size
    return earlier


def _made_of(held: set[str], others: Iterable[Manifest]) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
    """Models, and everything else, with one of the versions among their ancestors.

    A tokenizer is a statistic of many texts: it is named, but a model does not count as trained on what it was made of.
    """
    exposed = set(held)
    found: dict[Path, Manifest] = {}
    waiting = list(others)
    while True:
        new = [m for m in waiting if any(p.content_hash in exposed for p in m.parents)]
        if not new:
            break
        found |= {manifest.path: manifest for manifest in new}
        exposed |= {manifest.content_hash for manifest in new if manifest.kind != "tokenizer"}
        waiting = [manifest for manifest in waiting if manifest.path not in found]
    ordered = [found[path] for path in sorted(found)]
    models = tuple(manifest for manifest in ordered if manifest.kind in MODEL_KINDS)
    return models, tuple(manifest for manifest in ordered if manifest.kind not in MODEL_KINDS)
