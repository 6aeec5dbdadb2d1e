"""The rows that new ones are made of. Knows no method's request."""

from __future__ import annotations

from lmworks.core.errors import DataError
from lmworks.data.identity import row_id
from lmworks.data.rows.conversations import FILE
from lmworks.data.rows.load import load_rows
from lmworks.data.rows.values import CompletionRow, Content, LabeledRow, PromptRow, Row, TextRow
from lmworks.data.synthesis.config import SynthesizeConfig
from lmworks.data.synthesis.methods import Seed


def read_seeds(config: SynthesizeConfig) -> list[Seed]:
    """The rows of all inputs.

    Raises:
        DataError: a row holds nothing that the method could begin with.
    """
    if not config.inputs:
        raise DataError("no inputs are given", "Give at least one file of rows")
    seeds = []
    for path in config.inputs:
        for number, row in enumerate(load_rows(path / FILE if path.is_dir() else path), 1):
            asked, answered = _asked_and_answered(row)
            missing = answered if config.method == "back_translation" else asked
            if not missing.strip():
                what = "text" if config.method == "back_translation" else "request of one turn"
                raise DataError(f"{path}: row {number} ({row.kind}) has no {what}", f"{config.method} begins with one")
            name = str(row.extra.get("id") or row_id(asked, answered))
            seeds.append(Seed(name, asked, answered, row.extra))
    return seeds


def _asked_and_answered(row: Row) -> tuple[str, str]:
    """The request and the answer of a row of one turn each; a text is an answer to nothing."""
    if isinstance(row, TextRow) and isinstance(row.text, str):
        return "", row.text
    if isinstance(row, TextRow):
        return _said(row.text[:1]), _said(row.text[1:])
    if isinstance(row, PromptRow):
        return _said(row.prompt), ""
    if isinstance(row, CompletionRow | LabeledRow):
        return _said(row.prompt), _said(row.completion)
    return _said(row.asked), ""


def _said(content: Content) -> str:
    """What a content of one turn says; nothing of others, whose turns cannot be made new one by one."""
    if isinstance(content, str):
        return content
    return content[0].content if len(content) == 1 and content[0].role in ("user", "assistant") else ""
