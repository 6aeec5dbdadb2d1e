"""Labels as an artifact that tuning reads: preferences, single answers for KTO, and how far annotators agree.

Counted are labels of annotators whose consent holds. Rows carry how the votes fell, never who gave them. Knows no HTTP.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmworks.core.errors import DataError
from lmworks.core.lineage import Manifest, write_artifact
from lmworks.data.labels.agreement import Agreement, agreement
from lmworks.data.labels.items import FILE as ITEMS
from lmworks.data.labels.items import Item, kept_items
from lmworks.data.labels.study import JOURNAL, Label, State, read_state
from lmworks.data.rows.convert import unpair
from lmworks.data.rows.layouts import write_row
from lmworks.data.rows.values import PreferenceRow, Row

PREFERENCES, LABELED = "preferences.jsonl", "labeled.jsonl"


@dataclass(frozen=True)
class Labels:
    """What a folder of labels holds."""

    items: list[Item]
    state: State

    def of(self, item: str) -> list[Label]:
        """The labels of an item that count."""
        return [label for (_, name), label in self.state.labels.items() if name == item]

    @property
    def agreement(self) -> Agreement:
        """Between the annotators whose consent holds."""
        known = {item.id for item in self.items}
        ratings: dict[str, dict[str, Hashable]] = {}
        for (annotator, item), label in self.state.labels.items():
            if item in known:
                ratings.setdefault(item, {})[annotator] = label.verdict
        return agreement(ratings)

    @property
    def left(self) -> tuple[int, int]:
        """How often the left answer was chosen, and how often one of the two was."""
        decided = [label for label in self.state.labels.values() if label.verdict != "tie"]
        return sum(label.verdict == label.left for label in decided), len(decided)


def read_labels(folder: Path) -> Labels:
    """The labels of a folder, while they are collected too.

    Raises:
        DataError: it holds none.
    """
    items = kept_items(folder)
    if not (folder / JOURNAL).is_file():
        raise DataError(f"{folder / JOURNAL} is missing", "Give the whole folder that lmworks data label wrote")
    whole, _, _ = (folder / JOURNAL).read_bytes().rpartition(b"\n")  # a line that is being written is not there yet
    _, *entries = [json.loads(line) for line in whole.split(b"\n")]
    return Labels(items, read_state(entries))


def publish(folder: Path, output: Path, min_labels: int = 1) -> Manifest:
    """Write what most annotators of each item prefer.

    An item gives a preference where more labels are for one answer than for the other; it gives that answer as
    desirable and the other as undesirable. Items that are undecided, or have too few labels, give nothing.

    Args:
        folder: of labels.
        output: of the artifact: `preferences.jsonl`, `labeled.jsonl` for KTO, `agreement.json`.
        min_labels: fewest labels of an item.

    Raises:
        DataError: no item gives a preference.
    """
    labels = read_labels(folder)
    fates: Counter[str] = Counter()
    rows: list[PreferenceRow] = []
    for item in labels.items:
        votes = Counter(label.verdict for label in labels.of(item.id))
        if votes.total() < min_labels or not votes:
            fates["too_few_labels"] += 1
        elif votes["first"] == votes["second"]:
            fates["undecided"] += 1
        else:
            rows.append(_preference(item, votes, sorted({label.consent for label in labels.of(item.id)})))
    if not rows:
        raise DataError(f"no item of {folder} gives a preference ({dict(fates)})", "Collect more labels")
    measured = asdict(labels.agreement)
    measured["cohen"] = [value for value in measured["cohen"].values() if value is not None]
    parents = {"items": folder / ITEMS, "journal": folder / JOURNAL}
    with write_artifact(output, "preferences", config={"min_labels": min_labels}, parents=parents) as writer:
        _write(writer.folder / PREFERENCES, rows)
        _write(writer.folder / LABELED, (one for row in rows for one in unpair(row)))
        (writer.folder / "agreement.json").write_text(json.dumps(measured, indent=1) + "\n")
        withdrawn = len(labels.state.withdrawn)
        writer.metrics.update({"preferences": len(rows), **fates, "annotators_withdrawn": withdrawn})
        writer.notes["consent_texts"] = labels.state.texts
    assert writer.manifest is not None, "the artifact is published"
    return writer.manifest


def _preference(item: Item, votes: Counter[Any], consents: list[str]) -> PreferenceRow:
    better, worse = ("first", "second") if votes["first"] > votes["second"] else ("second", "first")
    first, second = item.answers
    lineage = {
        "method": "human_preference", "parents": [str(item.extra.get("id", item.id))],
        "votes": {"chosen": votes[better], "rejected": votes[worse], "tie": votes["tie"]}, "consents": consents,
    }  # fmt: skip
    if "lineage" in item.extra:
        lineage["of"] = item.extra["lineage"]
    extra = {**item.extra, "id": item.id, "lineage": lineage}
    chosen, rejected = (first, second) if better == "first" else (second, first)
    return PreferenceRow(item.row.prompt, chosen, rejected, tools=item.row.tools, extra=extra)


def _write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(write_row(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
