"""The Alpaca layout: `instruction`, `input`, `output`, with `system` and earlier turns in `history`. Knows no file.

The input is joined to the instruction by an empty line, which is how the model sees it; written again, the
instruction holds both. Other data sets say the same under other names (Dolly, MS-Swift, Orca pairs, Self-Instruct).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.messages import Message
from lmworks.data.rows.turns import read_turns
from lmworks.data.rows.values import CompletionRow, LabeledRow, PreferenceRow, Row, RowFault, read_label

_FIELDS = ("instruction", "input", "output", "system", "history")
_RENAMED = {
    "instruction": ("query", "question"),
    "input": ("context",),
    "output": ("response", "answer"),
}
"""Names of fields, and what they are called elsewhere."""
_OTHERS = {"prompt", "messages", "text"}
"""Fields that, beside such other names, make a row one of another layout."""


def with_its_names(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of a row of this layout, other names replaced by its own; None of any other row.

    Raises:
        RowFault: it has several answers of Self-Instruct (`instances`), which are rows of their own.
    """
    if "instruction" in fields and ("output" in fields or isinstance(fields.get("chosen"), str)):
        return dict(fields)
    if _OTHERS & set(fields):
        return None
    instances = fields.get("instances")
    if "instruction" in fields and isinstance(instances, list) and all(isinstance(one, Mapping) for one in instances):
        if len(instances) != 1:
            raise RowFault("several rows", f"'instances' holds {len(instances)} answers; make each a row of its own")
        fields = {**{name: value for name, value in fields.items() if name != "instances"}, **instances[0]}
    renamed = dict(fields)
    for name, others in _RENAMED.items():
        if name not in renamed and (found := next((other for other in others if other in fields), None)) is not None:
            renamed[name] = renamed.pop(found)
    answered = "output" in renamed or isinstance(renamed.get("chosen"), str)
    return renamed if answered and "instruction" in renamed else None


def read(fields: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]) -> Row:
    """A prompt and its completion, or a preference where `chosen` and `rejected` are given, or labeled by `kto_tag`."""
    for name in ("instruction", "input", "output", "system"):
        if not isinstance(fields.get(name, ""), str):
            raise RowFault("malformed", f"{name!r} is a {type(fields[name]).__name__}, not a text")
    history = fields.get("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise RowFault("malformed", "'history' is not a list of pairs of texts")
    turns = [("user", "assistant")[n % 2] for n in range(2 * len(history))]
    said = [text for pair in history for text in pair]
    asked = "\n\n".join(fields[name] for name in ("instruction", "input") if fields.get(name))
    opening = [("system", fields["system"])] if fields.get("system") else []
    prompt = [*opening, *zip(turns, said, strict=True), ("user", asked)]
    messages = read_turns([{"role": role, "content": text} for role, text in prompt], "history")
    extra = {key: value for key, value in fields.items() if key not in _FIELDS}
    if "output" not in fields:
        if "rejected" not in fields:
            raise RowFault("malformed", "'chosen' is given without 'rejected'")
        chosen, rejected = (_answer(extra.pop(name), name) for name in ("chosen", "rejected"))
        return PreferenceRow(messages, chosen, rejected, tools=tools, extra=extra)
    if "kto_tag" in extra:
        label = read_label(extra.pop("kto_tag"), "kto_tag")
        return LabeledRow(messages, _answer(fields["output"], "output"), label, tools=tools, extra=extra)
    return CompletionRow(messages, _answer(fields["output"], "output"), tools=tools, extra=extra)


def write(row: Row) -> dict[str, Any]:
    """A prompt that ends with the user and an answer of one turn."""
    answers: dict[str, Any] = {}
    if isinstance(row, CompletionRow | LabeledRow):
        answers = {"output": row.completion}
    elif isinstance(row, PreferenceRow):
        answers = {"chosen": row.chosen, "rejected": row.rejected}
    prompt = row.contents.get("prompt")
    if not answers or not isinstance(prompt, tuple) or any(len(content) != 1 for content in answers.values()):
        raise RowFault("not expressible", f"the layout 'alpaca' cannot hold this {row.kind} row")
    system, turns = ("", prompt) if prompt[0].role != "system" else (prompt[0].content, prompt[1:])
    texts = [turn.content for turn in turns]
    if len(texts) % 2 == 0:
        raise RowFault("not expressible", "the layout 'alpaca' needs a prompt that ends with the user")
    history = [[texts[n], texts[n + 1]] for n in range(0, len(texts) - 1, 2)]
    return {
        "instruction": texts[-1],
        "input": "",
        **{name: content[0].content for name, content in answers.items()},
        **({"system": system} if system else {}),
        **({"history": history} if history else {}),
        **({"kto_tag": row.label} if isinstance(row, LabeledRow) else {}),
    }


def _answer(text: object, field: str) -> tuple[Message, ...]:
    return read_turns([{"role": "assistant", "content": text}], field)
