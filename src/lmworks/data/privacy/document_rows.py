"""A document in files of rows and in reports: by its id, by those of its pieces and of what was synthesized from it.

Knows no lineage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.lineage import Manifest
from lmworks.data.privacy.history import Places, Rows


def belongs(document: str, identity: Any) -> bool:
    """Whether a row's id is the document's or one of its pieces'."""
    return identity == document or bool(re.fullmatch(rf"{re.escape(document)}-\d+", str(identity)))


def shown_with(document: str, value: Any) -> set[str] | None:
    """The ids beside which a report shows the document, as a duplicate; None where it does not show it."""
    if isinstance(value, list):
        found = [beside for inner in value if (beside := shown_with(document, inner)) is not None]
        return set().union(*found) if found else None
    if not isinstance(value, Mapping):
        return None
    if belongs(document, value.get("id", value.get("document"))):
        return set()
    beside = shown_with(document, list(value.values()))
    if beside is None:
        return None
    return beside | {inner["id"] for inner in value.values() if isinstance(inner, Mapping) and _other(document, inner)}


def _other(document: str, sample: Mapping[str, Any]) -> bool:
    return isinstance(sample.get("id"), str) and not belongs(document, sample["id"])


class RowSearch:
    """Looks for the rows of a document; learns on the way which ids were made of it, and where it came from."""

    def __init__(self, document: str) -> None:
        self.document = document
        self.ids: set[str] = set()
        self.origins: set[str] = set()
        self.unreadable: set[str] = set()
        self._written: tuple[bytes, ...] = ()
        self._learn(document)

    def rows_of(self, manifest: Manifest) -> Places:
        """The document's rows in an artifact, by file."""
        files = [name for name in manifest.files if name.endswith(".jsonl") and "/" not in name]
        found = {name.removesuffix(".jsonl"): self.rows_in(manifest.path / name) for name in files}
        return {split: rows for split, rows in found.items() if rows}

    def rows_in(self, file: Path) -> Rows:
        """The document's rows in a file of rows; other lines are passed over."""
        found: Rows = {}
        try:
            with file.open("rb") as source:
                for number, line in enumerate(source):
                    if any(written in line for written in self._written) and self._is_its(row := _row(line)):
                        found[number] = len(str(row.get("text", "")).encode("utf-8", "surrogatepass"))
                        self._learn(row.get("id"))
                        self.origins |= {str(row["source"])} if row.get("source") else set()
        except OSError as error:
            self.unreadable.add(f"{file}: {error.strerror}")
        return found

    def _learn(self, identity: Any) -> None:
        if isinstance(identity, str) and identity not in self.ids:
            self.ids.add(identity)
            forms = (json.dumps(identity, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
            self._written += tuple({form.encode("utf-8", "surrogatepass") for form in forms})

    def _is_its(self, row: Mapping[str, Any]) -> bool:
        lineage = row.get("lineage")
        parents = (lineage if isinstance(lineage, Mapping) else row).get("parents")
        named = [row.get("id"), *(parents if isinstance(parents, list) else ())]
        return any(belongs(self.document, one) or (isinstance(one, str) and one in self.ids) for one in named)


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def report_of(manifest: Manifest) -> Any:
    """The report.json of a corpus, or None."""
    file = manifest.path / "report.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if "report.json" in manifest.files else None
    except (OSError, ValueError):
        return None  # to remove a row from the artifact, it must match its manifest
