"""Which rows of which version of an artifact are a document's: numbers of rows, carried over erasures and conversions.

A version is known by its content hash, and so is a part of one that a stage may have read by itself: a file of rows, a
split of tokens. Reads manifests alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from lmworks.core.lineage import Manifest, tree_hash

ERASED = "erased"
"""The key of a manifest's notes under which erasures are remembered, documents by the hash of their id."""
CONVERTED = "converted"
"""The key under which a conversion says, by split, how many documents it read of each source and which it left out."""

Rows = dict[int, int]
"""Numbers of rows from 0, and the bytes of their texts."""
Places = dict[str, Rows]
"""By split: the stem of a file of rows, a folder of a token store, the name of a file of tokens."""


def digest(document: str) -> str:
    """How notes name a document: ids may themselves say something about a person."""
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def note(manifest: Manifest, places: Places, digests: Collection[str]) -> dict[str, Any]:
    """What an erased artifact remembers of the version before: which rows were whose."""
    listed = {split: sorted(map(list, rows.items())) for split, rows in places.items()}
    parts = {part: split for part, split in parts_of(manifest).items() if split in places}
    return {"documents": list(digests), "version": manifest.content_hash, "parts": parts, "places": listed}


def parts_of(manifest: Manifest) -> dict[str, str]:
    """The split that each file of rows and each folder of an artifact holds, by content hash."""
    if manifest.path.is_file():
        return dict.fromkeys(manifest.files.values(), manifest.path.name)  # copied without its manifest, say
    folders: dict[str, dict[str, str]] = {}
    parts = {}
    for name, value in manifest.files.items():
        folder, _, inner = name.partition("/")
        if inner:
            folders.setdefault(folder, {})[inner] = value
        elif name.endswith(".jsonl"):
            parts[value] = name.removesuffix(".jsonl")
    return parts | {tree_hash(files): folder for folder, files in folders.items()}


def versions(document: str, manifest: Manifest, places: Places | None) -> dict[str, Places]:
    """The document's rows in every version of an artifact, and part of one, that holds or held it, by content hash.

    Args:
        document: its id.
        manifest: of the artifact as it is.
        places: the document's rows now; None where it is not in it.
    """
    held = {} if places is None else {manifest.content_hash: places} | _by_part(parts_of(manifest), places)
    wanted = digest(document)
    for erased in reversed(manifest.notes.get(ERASED, [])):
        removed = _removed(erased)
        places = None if places is None else _before(places, removed)
        if wanted in erased["documents"]:
            places = joined(places or {}, removed)
        if places is not None:
            held |= {erased["version"]: places} | _by_part(erased["parts"], places)
    return held


def erased_since(manifest: Manifest, version: str) -> tuple[Places, set[str]]:
    """Rows of a version, or of a part of one, that are gone now, whoever's they were, and their documents' digests.

    What was made of that version still holds them where an erasure was interrupted, and must lose them all.
    """
    if version == manifest.content_hash or version in parts_of(manifest):
        return {}, set()
    rows: Places = {}
    documents: set[str] = set()
    for erased in reversed(manifest.notes.get(ERASED, [])):
        removed = _removed(erased)
        rows = joined(_before(rows, removed), removed)
        documents |= set(erased["documents"])
        if version == erased["version"]:
            return rows, documents
        if version in erased["parts"]:
            return {split: rows[split] for split in (erased["parts"][version],)}, documents
    return {}, set()


def carried_over(converted: Mapping[str, list[int]], source: int, rows: Rows) -> Rows:
    """The numbers in a conversion of rows of one of its sources; those that were left out have none.

    Args:
        converted: a split's entry under `CONVERTED`.
        source: which of the sources, from 0.
        rows: of the source.
    """
    first, left_out = sum(converted["read"][:source]), converted["left_out"]
    numbers = {number: first + number for number in rows if first + number not in left_out}
    return {place - sum(gone < place for gone in left_out): rows[number] for number, place in numbers.items()}


def came_from(converted: Mapping[str, list[int]], number: int) -> tuple[int, int]:
    """Of a document of a conversion: which of the sources it was in, and its number there."""
    for gone in sorted(converted["left_out"]):
        number += gone <= number
    source = 0
    while number >= converted["read"][source]:
        number -= converted["read"][source]
        source += 1
    return source, number


def after_removal(converted: Mapping[str, list[int]], gone: Mapping[int, Rows]) -> dict[str, list[int]]:
    """A split's entry under `CONVERTED` once sources, by number, have lost rows."""
    read = converted["read"]
    removed = {sum(read[:source]) + number for source, rows in gone.items() for number in rows}
    left = [number for number in converted["left_out"] if number not in removed]
    return {
        "read": [count - len(gone.get(source, ())) for source, count in enumerate(read)],
        "left_out": [number - sum(place < number for place in removed) for number in left],
    }


def joined(places: Places, others: Places) -> Places:
    """The rows of both."""
    return {split: {**places.get(split, {}), **others.get(split, {})} for split in sorted({*places, *others})}


def _by_part(parts: Mapping[str, str], places: Places) -> dict[str, Places]:
    return {part: {split: places[split]} for part, split in parts.items() if places.get(split)}


def _removed(erased: Mapping[str, Any]) -> Places:
    return {split: dict(rows) for split, rows in erased["places"].items()}


def _before(places: Places, removed: Places) -> Places:
    """The numbers that rows had before others were removed."""
    earlier: Places = {}
    for split, rows in places.items():
        for number, size in rows.items():
            place = number
            for gone in sorted(removed.get(split, ())):
                place += gone <= place
            earlier.setdefault(split, {})[place] = size
    return earlier
