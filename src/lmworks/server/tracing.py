"""From a journaled response to the family tree of the model that gave it. Knows no HTTP."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmworks.core.lineage import Parent
from lmworks.core.trace import trace_recorded
from lmworks.server.journal import JournalEntry


def trace_response(entry: JournalEntry) -> dict[str, Any]:
    """The record under `answer` and, under `made_from` the tree behind its model (None for weights from memory).

    Manifests are believed rather than checked against every file, so that the answer comes at once;
    `lmworks trace` on the artifact checks.
    """
    if entry.path is None:
        return {"answer": asdict(entry), "made_from": None}
    model = Parent(entry.path, "model", entry.content_hash, "model")
    return {"answer": asdict(entry), "made_from": trace_recorded(model, Path(entry.path), check=False).to_dict()}
