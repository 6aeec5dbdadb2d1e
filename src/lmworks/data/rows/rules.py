"""What a single row must be to be learnt from, as a table of rules. Knows neither files nor other rows."""

from __future__ import annotations

import difflib
import re
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
    "references", "solution", "difficulty", "dataset", "name", "is_classification",
}  # fmt: skip
"""Fields that files commonly hold beside those of their type."""
_ALIKE = 0.8
"""Of a field's name to a known one, from which on it is taken for a slip of the pen."""


_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ufffd]")
"""Control characters, byte order marks inside of a text, and what stands where a character was lost."""
_WRITTEN_CALL = re.compile("<(tool_call|functioncall|function_call)>")

REMEDIES = {
    "call as text": "Write calls as tool_calls of the turn, so that a chat template writes them in its own way",
    "carried field": "Nothing, if it is meant; it stays with the row and is not tuned on",
    "chat template": "Give the tokenizer a chat template, or turns that it accepts",
    "chosen equals rejected": "Remove the row; it prefers nothing",
    "contradiction": "Decide for one of the labels",
    "empty turn": "Fill or remove the turn",
    "encoding": "Convert the file to UTF-8",
    "label": "Write true or false",
    "lone surrogate": "Write the character whole, or leave the half out; it came from a text cut in the middle",
    "malformed": "Write each row as a JSON object of the shapes in docs/guides/instruction-data.md",
    "mixed forms": "Give all rows as texts, or all as messages",
    "mixed types": "Keep each type in a file of its own",
    "name twice": "Leave one of the two out",
    "nesting": "Flatten the field; readers and writers give up on such depth",
    "no number": "Write a number that JSON has, or null",
    "no prompt": "Give the prompt in a field of its own",
    "no rows": "Give a file with at least one row",
    "no turns": "Give at least a user's and an assistant's turn",
    "not text": "Leave out the row, or its images and sounds with what refers to them",
    "nothing to learn": "Add the assistant's answer, or use the row as a prompt",
    "odd character": "Look whether the text was decoded wrongly",
    "repeated row": "Remove one of the two; it counts twice",
    "role order": "Let user and assistant take turns, the system first, results of tools after their calls",
    "several rows": "Split the row",
    "shared prompt": "Keep what asks the same in one split, or results on the other mean little",
    "too long": "Shorten or remove the row, or raise the limit",
    "tool call": "Call a declared tool with arguments that its schema allows",
    "tool schema": "Declare the tool as OpenAI does: type function, and function with name and JSON Schema parameters",
    "turn weight": "End the conversation before the turn, or move what is not learnt into the prompt",
    "unbalanced labels": "Add rows of the rarer label, or weigh them in the loss",
    "undeclared tools": "Add the tools that the calls are of",
    "unknown field": "Correct the field's name, or remove it",
    "unknown type": "Rename the fields to those of a type that is known",
}
"""What to do about each rule that `data validate` names."""


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


def _odd_characters(row: Row) -> Iterator[Broken]:
    for name, content in row.contents.items():
        for text in (content,) if isinstance(content, str) else (turn.content for turn in content):
            if found := _ODD.search(text):
                place = f"{name!r}, character {found.start() + 1}"
                yield RowFault("odd character", f"{place}: U+{ord(found[0]):04X}"), False
                break


def _calls_as_text(row: Row) -> Iterator[Broken]:
    for name, content in row.contents.items():
        if isinstance(content, tuple) and any(
            turn.role == "assistant" and _WRITTEN_CALL.search(turn.content) for turn in content
        ):
            yield RowFault("call as text", f"{name!r} holds a call of a tool that is written as text"), False


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
    _unknown_fields, _turn_order, _empty, _nothing_to_learn, _same_answers, _tools, _odd_characters, _calls_as_text,
)  # fmt: skip
