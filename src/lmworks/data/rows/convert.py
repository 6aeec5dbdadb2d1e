"""One type of row into another where nothing is lost, and the turns of a row as the text a chat template makes.

Every conversion has its inverse among these, and what the inverse would not bring back is refused. Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Protocol

from lmworks.core.errors import DataError
from lmworks.core.messages import Message
from lmworks.data.rows.values import (
    CompletionRow,
    Content,
    Kind,
    LabeledRow,
    PreferenceRow,
    PromptRow,
    Row,
    RowFault,
    StepwiseRow,
    TextRow,
    shared,
)


def explicit(row: PreferenceRow) -> PreferenceRow:
    """The same preference with its prompt taken out of both answers: the turns (or characters) they share."""
    if row.prompt is not None:
        return row
    cut = shared(row.chosen, row.rejected)
    return replace(row, prompt=row.chosen[:cut], chosen=row.chosen[cut:], rejected=row.rejected[cut:])


def implicit(row: PreferenceRow) -> PreferenceRow:
    """The same preference with its prompt at the head of both answers.

    Raises:
        RowFault: the prompt could not be found again, as both answers begin alike.
    """
    if row.prompt is None:
        return row
    merged = replace(row, prompt=None, chosen=_join(row.prompt, row.chosen), rejected=_join(row.prompt, row.rejected))
    if explicit(merged) != row:
        raise RowFault("not lossless", "both answers begin alike, so the end of the prompt would be lost")
    return merged


def unpair(row: PreferenceRow) -> tuple[LabeledRow, LabeledRow]:
    """The chosen and the rejected answer, each with its label."""
    row = explicit(row)
    assert row.prompt is not None, "an explicit row has a prompt"
    common: dict[str, Any] = {"tools": row.tools, "extra": row.extra}
    return (
        LabeledRow(row.prompt, row.chosen, True, **common),
        LabeledRow(row.prompt, row.rejected, False, **common),
    )


def pair(rows: Sequence[LabeledRow]) -> list[PreferenceRow]:
    """Preferences of answers that follow each other, the desirable one first: what `unpair` took apart.

    Raises:
        DataError: naming the first row (counted from 1) that has no partner.
    """
    paired = []
    for number in range(0, len(rows), 2):
        good, bad = rows[number], rows[number + 1] if number + 1 < len(rows) else None
        same = bad is not None and (good.prompt, good.tools, good.extra) == (bad.prompt, bad.tools, bad.extra)
        if bad is None or not same or not good.label or bad.label:
            raise DataError(
                f"row {number + 1} is not followed by the other answer to its prompt",
                "Give each desirable answer with the undesirable one after it",
            )
        paired.append(PreferenceRow(good.prompt, good.completion, bad.completion, tools=good.tools, extra=good.extra))
    return paired


def convert(rows: Iterable[Row], kind: Kind) -> list[Row]:
    """Rows of another type that say the same.

    Args:
        rows: of types that can become `kind`; those of `kind` stay, implicit preferences become explicit.
        kind: `preference` and `unpaired_preference` become each other, and so do conversations of
            `language_modeling` and `prompt_completion`.

    Raises:
        DataError: a row (named by its number) would lose something.
    """
    given = list(rows)
    if kind == "preference" and any(isinstance(row, LabeledRow) for row in given):
        labeled = [row for row in given if isinstance(row, LabeledRow)]
        if len(labeled) < len(given):
            raise DataError("preferences and labeled answers are mixed", "Convert them one after the other")
        return list(pair(labeled))
    converted: list[Row] = []
    for number, row in enumerate(given, 1):
        try:
            converted += _convert(row, kind)
        except RowFault as fault:
            raise DataError(f"row {number}: {fault}", "Remove it or keep the type") from None
    return converted


def _convert(row: Row, kind: Kind) -> Sequence[Row]:
    if isinstance(row, PreferenceRow) and kind in ("preference", "unpaired_preference"):
        return [explicit(row)] if kind == "preference" else unpair(row)
    if row.kind == kind:
        return [row]
    if isinstance(row, CompletionRow) and kind == "language_modeling" and row.conversational:
        merged = TextRow(_join(row.prompt, row.completion), tools=row.tools, extra=row.extra)
        if _split(merged) != row:
            raise RowFault("not lossless", "the completion is not the last answer, so its beginning would be lost")
        return [merged]
    if isinstance(row, TextRow) and kind == "prompt_completion" and row.conversational:
        return [_split(row)]
    raise RowFault("not lossless", f"a {row.kind} row cannot become {kind} without loss")


def _split(row: TextRow) -> CompletionRow:
    """Everything after the last turn of the user is the completion, calls of tools and their results included."""
    assert isinstance(row.text, tuple), "a text has no turns"
    last = max((n for n, turn in enumerate(row.text) if turn.role == "user"), default=-1)
    if last < 0 or last == len(row.text) - 1:
        raise RowFault("not lossless", "the conversation has no answer after its last question")
    return CompletionRow(row.text[: last + 1], row.text[last + 1 :], tools=row.tools, extra=row.extra)


def _join(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    return _turns(first) + _turns(second)


class ChatRenderer(Protocol):
    """What is needed of a tokenizer."""

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        *,
        continue_final_message: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A conversation as `text`."""
        ...


def render(row: Row, tokenizer: ChatRenderer) -> Row:
    """A conversational row in standard form, its turns as the chat template writes them.

    The prompt ends where the assistant is to speak, and each answer is what the template adds to it; a prompt that
    a template writes otherwise once it is answered is cut to what stays the same. Rows in standard form stay.

    Args:
        row: any but stepwise, whose steps no template knows.
        tokenizer: has a chat template.

    Raises:
        RowFault: the row is stepwise.
        TokenizerError: there is no chat template, or it fails on these messages.
    """
    if not row.conversational:
        return row
    if isinstance(row, StepwiseRow):
        raise RowFault("no template", "steps of one answer are no turns that a chat template could write")
    inputs = {"tools": [dict(tool) for tool in row.tools]} if row.tools else None

    def text(content: Content | None, **flags: bool) -> str:
        return str(tokenizer.render_chat(_turns(content), **flags, inputs=inputs).text)

    if isinstance(row, TextRow):
        return TextRow(text(row.text), extra=row.extra)
    if isinstance(row, PreferenceRow) and row.prompt is None:
        return PreferenceRow(None, text(row.chosen), text(row.rejected), extra=row.extra)
    contents = dict(row.contents)
    asked = _turns(contents.pop("prompt"))
    opened = asked[-1].role in ("user", "tool")
    prompt = text(asked, add_generation_prompt=opened, continue_final_message=not opened)
    answered = {name: text(asked + _turns(answer)) for name, answer in contents.items()}
    for whole in answered.values():
        prompt = "".join(a for a, _ in takewhile(lambda both: both[0] == both[1], zip(prompt, whole, strict=False)))
    answers = {name: whole[len(prompt) :] for name, whole in answered.items()}
    label = {"label": row.label} if isinstance(row, LabeledRow) else {}
    made: Callable[..., Row] = type(row)
    assert isinstance(row, PromptRow | CompletionRow | LabeledRow | PreferenceRow), "every other type was handled"
    return made(prompt=prompt, **answers, **label, extra=row.extra)


def _turns(content: Content | None) -> tuple[Message, ...]:
    assert isinstance(content, tuple), "the row is conversational"
    return content
