"""What people are asked to compare: two answers to one prompt, kept with the labels. Knows no annotator.

Which answer a row calls chosen plays no part: the two stand in the order of their hashes, which is that of chance and
yet the same whichever way a row gives them, and each annotator sees them in an order of chance again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmworks.core.errors import DataError
from lmworks.core.lineage import write_synced
from lmworks.data.identity import row_id
from lmworks.data.rows.convert import explicit
from lmworks.data.rows.layouts import parse_row, write_row
from lmworks.data.rows.load import load_as
from lmworks.data.rows.values import Content, PreferenceRow, Row, RowFault

FILE = "items.jsonl"


@dataclass(frozen=True)
class Item:
    """Two answers to one prompt."""

    id: str
    """Of the content alone."""
    row: PreferenceRow
    """With the answers as `chosen` and `rejected`, which says nothing of their worth."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the row that it comes from, its `id` among them."""

    @property
    def answers(self) -> tuple[Content, Content]:
        """Both, in the order in which labels count them."""
        return self.row.chosen, self.row.rejected


def read_items(file: Path) -> list[Item]:
    """The items of a file of preference rows of any layout, each once.

    Raises:
        DataError: a row has no two different answers to one prompt.
    """
    items = load_as(file, _item, "pairs")
    return list({item.id: item for item in items}.values())


def _item(row: Row) -> Item:
    if not isinstance(row, PreferenceRow):
        raise RowFault("other type", f"a {row.kind} row has no two answers ('chosen', 'rejected')")
    row = explicit(row)
    if row.chosen == row.rejected:
        raise RowFault("chosen equals rejected", "both answers are the same")
    if not row.prompt:
        raise RowFault("no prompt", "the answers share no beginning that could be the prompt")
    plain = PreferenceRow(row.prompt, row.chosen, row.rejected, tools=row.tools)
    written = write_row(plain)
    if row_id(json.dumps(written["rejected"])) < row_id(json.dumps(written["chosen"])):
        plain = PreferenceRow(row.prompt, row.rejected, row.chosen, tools=row.tools)
    return Item(row_id(json.dumps(write_row(plain), sort_keys=True)), plain, row.extra)


def keep_items(folder: Path, items: list[Item]) -> None:
    """Write the items beside the labels, so that these can be read without the file that they came from."""
    lines = [{**write_row(item.row), "id": item.id, "extra": dict(item.extra)} for item in items]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    staged = folder / f".{FILE}.tmp"
    write_synced(staged, text)
    staged.replace(folder / FILE)


def kept_items(folder: Path) -> list[Item]:
    """The items of a folder of labels.

    Raises:
        DataError: it is none.
    """
    if not (folder / FILE).is_file():
        raise DataError(f"{folder} holds no labels", "Give the --output of lmworks data label")
    items = []
    for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        name, extra = fields.pop("id"), fields.pop("extra")
        row = parse_row(fields)
        assert isinstance(row, PreferenceRow), "items are written as preferences"
        items.append(Item(name, row, extra))
    return items
