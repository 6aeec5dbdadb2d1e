"""What a single row must be to be learnt from, as a table of rules. Knows neither files nor other rows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from itertools import chain

from lmworks.core.messages import Message
from lmworks.data.rows.convert import explicit
from lmworks.data.rows.layouts import TYPES
from lmworks.data.rows.tool_calls import tool_faults
from lmworks.data.rows.turns import check_order
from lmworks.data.rows.values import Content, PreferenceRow, PromptRow, Row, RowFault

Broken = tuple[RowFault, bool]
"""A rule that a row breaks, and whether the row is useless by that (else it is worth a look)."""
FIELDS = sorted({*chain.from_iterable(TYPES), "tools", "conversations", "instruction", "input", "output", "system"})
CARRIED = {
    "id", "prompt_id", "source", "license", "language", "lang", "task", "category", "meta", "lineage", "split",
    "data_source", "ability", "reward_model", "extra_info", "score", "score_chosen", "score_rejected", "model",
    "parallel_tool_calls", "chat_template_kwargs", "title", "url", "date", "answer", "answers", "reference",
    "references", "solution", "difficulty", "dataset",
}  # fmt: skip
"""Fields that files commonly hold beside those of their type."""
_ALIKE = 0.8
"""Of a field's name to a known one, from which on it is taken for a slip of the pen."""


def broken_rules(row: Row) -> Iterator[Broken]:
    """Every rule that a row breaks."""
    for rule in RULES:
        yield from rule(row)


def _unknown_fields(row: Row) -> Iterator[Broken]:
    for name in sorted(set(row.extra) - CARRIED):
        near = difflib.get_close_matches(name, [*FIELDS, *sorted(CARRIED)], n=1, cutoff=_ALIKE)
        if near and near[0] not in row.extra and near[0] not in row.contents:
            yield RowFault("unknown field", f"{name!r} is not known (did you mean {near[0]!r}?)"), True
        else:
            yield RowFault("carried field", f"{name!r} is no field of a {row.kind} row; it is carried along"), False


def _turn_order(row: Row) -> Iterator[Broken]:
    for name, turns in _conversations(row):
        try:
            check_order(turns)
        except RowFault as fault:
            yield RowFault(fault.rule, f"{name}: {fault}"), True


def _empty(row: Row) -> Iterator[Broken]:
    for name, content in row.contents.items():
        if isinstance(content, str):
            if not content.strip():
                yield RowFault("empty turn", f"{name!r} is empty"), True
            continue
        if not content:
            yield RowFault("empty turn", f"{name!r} has no turns"), True
        for number, turn in enumerate(content):
            if not turn.content.strip() and not turn.tool_calls and turn.role != "tool":
                yield RowFault("empty turn", f"{name!r}: turn {number} ({turn.role}) is empty"), True


def _nothing_to_learn(row: Row) -> Iterator[Broken]:
    if isinstance(row, PromptRow):
        return
    for name, content in row.contents.items():
        if name != "prompt" and isinstance(content, tuple) and all(turn.role != "assistant" for turn in content):
            yield RowFault("nothing to learn", f"{name!r} has no turn of the assistant"), True


def _same_answers(row: Row) -> Iterator[Broken]:
    if isinstance(row, PreferenceRow):
        if row.chosen == row.rejected:
            yield RowFault("chosen equals rejected", "both answers are the same"), True
        elif row.prompt is None and not explicit(row).prompt:
            yield RowFault("no prompt", "the answers share no beginning that could be the prompt"), True


def _tools(row: Row) -> Iterator[Broken]:
    for _, turns in _conversations(row):
        yield from tool_faults(turns, row.tools)


def _conversations(row: Row) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Every conversation of a row as it is learnt: each answer behind its prompt."""
    if isinstance(row, PreferenceRow):
        row = explicit(row) if row.chosen != row.rejected else row
    contents = dict(row.contents)
    before = _turns(contents.pop("prompt", ()))
    if not contents and before:
        yield "prompt", before
    if "completions[0]" in contents:
        contents = {"completions": tuple(chain.from_iterable(map(_turns, contents.values())))}
        # Steps follow each other without the user's word between them, so that only the first is in an order.
        contents = {name: turns[:1] for name, turns in contents.items()}
    for name, content in contents.items():
        if turns := before + _turns(content):
            yield name, turns


def _turns(content: Content) -> tuple[Message, ...]:
    return () if isinstance(content, str) else content


RULES: tuple[Callable[[Row], Iterator[Broken]], ...] = (
    _unknown_fields, _turn_order, _empty, _nothing_to_learn, _same_answers, _tools,
)  # fmt: skip
