"""Reads what tasks are built from: a corpus artifact, held-out conversations, yes/no questions. Knows no task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import EvalError
from lmworks.core.generation import Document
from lmworks.core.messages import Message
from lmworks.data.rows.conversations import load_conversations
from lmworks.evals.task import Inputs

HELD_OUT = "held_out.jsonl"
"""Where supervised fine-tuning leaves the conversations that it did not learn from, in the model's folder."""
QUESTIONS = "questions.jsonl"
_QUESTION_FIELDS = {"question": str, "passage": str, "label": bool}


def read_inputs(corpus: Path, *, conversations: Path | None, questions: Path | None, models: Sequence[Path]) -> Inputs:
    """Read everything at once.

    Args:
        corpus: corpus artifact.
        conversations: held-out conversations; None takes those in the first model folder that has any.
        questions: a questions artifact or file, or None.
        models: model folders.

    Raises:
        EvalError: a file is missing or damaged, or a row lacks a field.
        DataError: the conversations are.
    """
    train, validation = (list(read_documents(corpus / f"{split}.jsonl")) for split in ("train", "validation"))
    if conversations is None:
        conversations = next((m / HELD_OUT for m in models if (m / HELD_OUT).is_file()), None)
    held_out: list[list[Message]] = load_conversations(conversations) if conversations is not None else []
    return Inputs(train, validation, held_out, _questions(questions) if questions is not None else [])


def read_documents(file: Path) -> Iterator[Document]:
    """The documents of one split of a corpus, one at a time.

    Raises:
        EvalError: the file is missing or damaged.
    """
    for place, row in _rows(file):
        if not isinstance(row.get("text"), str):
            raise EvalError(f"{place} has no field 'text' of text", "Give a corpus made by `lmworks data prepare`")
        yield Document(str(row.get("id", "")), row["text"], str(row.get("source", "")))


def _questions(path: Path) -> list[Mapping[str, Any]]:
    rows = list(_rows(path / QUESTIONS if path.is_dir() else path))
    for place, row in rows:
        for name, kind in _QUESTION_FIELDS.items():
            if not isinstance(row.get(name), kind):
                raise EvalError(
                    f"{place} has no field {name!r} of type {kind.__name__}", "Give rows with question, passage, label"
                )
    return [row for _, row in rows]


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(file:line, row)` of a JSONL file."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"cannot read {file}: {error}", "Give the folder that the stage before wrote") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise EvalError(f"{file}:{number} is not JSON: {error}", "Make the file anew") from None
            if not isinstance(row, dict):
                raise EvalError(f"{file}:{number} holds a {type(row).__name__}, not an object", "Make the file anew")
            yield f"{file}:{number}", row
