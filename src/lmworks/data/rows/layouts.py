"""The layouts in which people keep rows for tuning: which one a row has, what it says, and how to write it again.

| layout | fields |
|---|---|
| `trl` | `text`, `messages`, `prompt`, `prompt`+`completion`, `chosen`+`rejected`, `label`, `completions`+`labels` |
| `sharegpt` | `conversations` of `from`/`value`, `system`, `tools`; `chosen`+`rejected` or `kto_tag` beside them |
| `alpaca` | `instruction`, `input`, `output`, `system`, `history`; likewise |
| `openai` | `messages`, `tools`; `input`/`preferred_output`/`non_preferred_output` |

Read only are the dialogs in one text of `transcripts`, and names that single data sets have for the same fields. A
row of verl (`data_source`, `prompt`, `reward_model`…) is a prompt with further fields. Knows no file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from lmworks.core.messages import Message
from lmworks.data.rows import alpaca, sharegpt, transcripts
from lmworks.data.rows.transcripts import is_hh
from lmworks.data.rows.turns import check_order, read_turns, write_turns
from lmworks.data.rows.values import (
    CompletionRow,
    Content,
    LabeledRow,
    PreferenceRow,
    PromptRow,
    Row,
    RowFault,
    StepwiseRow,
    TextRow,
    labeled,
    read_label,
)

Layout = Literal["trl", "openai", "sharegpt", "alpaca"]
TYPES: tuple[tuple[str, ...], ...] = (
    ("prompt", "completions", "labels"),
    ("chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("messages",),
    ("text",),
    ("prompt",),
)
"""Fields by which a row of `trl` is known, the first that fit."""
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Fields in which rows hold what their marks, such as `<image>`, stand for."""
_RENAMED = {
    "chosen_messages": "chosen", "rejected_messages": "rejected",  # LLaMA-Factory 1
    "chosen_response": "chosen", "rejected_response": "rejected",  # UltraFeedback, binarized by Argilla
    "response_j": "chosen", "response_k": "rejected",  # StackExchange pairs
    "conversation": "messages",  # LMSYS-Chat, WildChat
}  # fmt: skip
"""Names of fields elsewhere, and ours."""
_OPENAI = ("input", "preferred_output", "non_preferred_output")


def parse_row(value: object) -> Row:
    """The row that a mapping of any known layout says.

    Raises:
        RowFault: saying what is wrong with it.
    """
    if not isinstance(value, Mapping):
        raise RowFault("malformed", f"the row is a {type(value).__name__}, not an object")
    fields = {str(key): inner for key, inner in value.items() if inner is not None}
    for name, ours in _RENAMED.items():
        if name in fields and ours not in fields:
            fields[ours] = fields.pop(name)
    if media := [name for name in _MEDIA if fields.get(name)]:
        raise RowFault("not text", f"the row has {media[0]!r}; only text can be tuned on")
    if {"message_id", "parent_id"} <= set(value) or "message_tree_id" in fields:
        raise RowFault("unknown type", "the row is a message of a tree (OpenAssistant); give whole conversations")
    tools = _tools(fields.pop("tools", None))
    if "conversations" in fields:
        return sharegpt.read(fields, tools)
    if isinstance(fields.get("chat"), str) and isinstance(fields.get("system"), str):
        return _glaive(fields)
    if all(name in fields for name in _OPENAI):
        return _openai_preference(fields)
    if (renamed := alpaca.with_its_names(fields)) is not None:
        return alpaca.read(renamed, tools)
    for names in TYPES:
        if all(name in fields for name in names):
            return _trl(*_turns_of_transcripts(names, fields), tools)
    known = ", ".join("+".join(names) for names in (("conversations",), ("instruction", "output"), *TYPES))
    raise RowFault("unknown type", f"fields {sorted(fields)} fit no known layout ({known})")


def write_row(row: Row, layout: Layout = "trl") -> dict[str, Any]:
    """The row in a layout, JSON-able.

    Raises:
        RowFault: the layout cannot say all that the row says.
    """
    if layout == "sharegpt":
        written = sharegpt.write(row)
    elif layout == "alpaca":
        written = alpaca.write(row)
    elif layout == "openai":
        written = _write_openai(row)
    else:
        written = _write_trl(row)
    clash = sorted(set(written) & set(row.extra))
    if clash or parse_row({**written, **row.extra}) != row:
        lost = f"its field {clash[0]!r} has a meaning there" if clash else "something of it would be lost"
        raise RowFault("not expressible", f"the layout {layout!r} cannot hold this {row.kind} row: {lost}")
    return {**written, **row.extra}


def parse_conversation(value: object) -> list[Message]:
    """The messages of one row that is a whole conversation, as supervised tuning learns from.

    Raises:
        RowFault: the row is malformed, out of order, of another type, or has nothing to learn.
    """
    return conversation(parse_row(value))


def conversation(row: Row) -> list[Message]:
    """What is said in a row, the prompt's turns first; errors as in `parse_conversation`."""
    if not isinstance(row, TextRow | CompletionRow):
        raise RowFault("other type", f"a {row.kind} row is no conversation")
    parts = list(row.contents.values())
    if isinstance(row, TextRow) and isinstance(row.text, str):
        raise RowFault("other type", "a text is no conversation; it has no turns")
    roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
    messages = [
        turn
        for role, part in zip(roles, parts, strict=False)
        for turn in ((Message(role=role, content=part),) if isinstance(part, str) else part)
    ]
    check_order(messages)
    if not any(m.role == "assistant" and (m.content.strip() or m.tool_calls) for m in messages):
        raise RowFault("nothing to learn", "no assistant turn has any content, so there is nothing to learn")
    return messages


def _trl(names: tuple[str, ...], fields: dict[str, Any], tools: tuple[Mapping[str, Any], ...]) -> Row:
    taken = {*names, "prompt"} if "chosen" in names else set(names)
    common: Any = {"tools": tools, "extra": {key: value for key, value in fields.items() if key not in taken}}
    if "completions" in names:
        steps, labels = fields["completions"], fields["labels"]
        if not isinstance(steps, list) or not isinstance(labels, list) or len(steps) != len(labels):
            raise RowFault("label", "'completions' and 'labels' are not lists of one length")
        if not steps:
            raise RowFault("empty turn", "'completions' is empty")
        read = tuple(_content(step, f"completions[{number}]") for number, step in enumerate(steps))
        row: Row = StepwiseRow(
            _content(fields["prompt"], "prompt"), read, tuple(read_label(one, "labels") for one in labels), **common
        )
    elif "chosen" in names:
        row = _preference(fields, common)
    elif names == ("messages",):
        messages = read_turns(fields["messages"], "messages")
        if isinstance(common["extra"].get("label"), bool | int):  # LLaMA-Factory's for KTO; texts are names of classes
            return labeled(messages, common["extra"].pop("label"), "label", **common)
        return TextRow(messages, **common)
    elif names == ("text",):
        if not isinstance(fields["text"], str):
            raise RowFault("malformed", f"'text' is a {type(fields['text']).__name__}, not a text")
        return TextRow(fields["text"], **common)
    else:
        contents = [_content(fields[name], name) for name in names if name != "label"]
        if "label" in names:
            row = LabeledRow(contents[0], contents[1], read_label(fields["label"], "label"), **common)
        else:
            row = CompletionRow(*contents, **common) if len(contents) == 2 else PromptRow(*contents, **common)
    forms = {name: isinstance(content, str) for name, content in row.contents.items()}
    if len(set(forms.values())) > 1:
        texts = ", ".join(name for name, text in forms.items() if text)
        turns = ", ".join(name for name, text in forms.items() if not text)
        raise RowFault("mixed forms", f"{texts}: text, but {turns}: messages; give all in one form")
    return row


def _preference(fields: Mapping[str, Any], common: Any) -> PreferenceRow:
    chosen, rejected = (_content(fields[name], name) for name in ("chosen", "rejected"))
    prompt = _content(fields["prompt"], "prompt") if "prompt" in fields else None
    if isinstance(prompt, str) and isinstance(chosen, tuple) and isinstance(rejected, tuple):
        # Some data sets repeat the user's words beside conversations that hold them already.
        if not any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in chosen):
            raise RowFault("mixed forms", "'prompt' is a text that no turn of 'chosen' repeats; give messages")
        prompt = None
    return PreferenceRow(prompt, chosen, rejected, **common)


def _turns_of_transcripts(names: tuple[str, ...], fields: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The row's type and fields with dialogs of HH as turns; answers to such a prompt are what the assistant says."""
    held = {name: fields[name] for name in {*names, "prompt"} if name in fields}
    dialogs: dict[str, Any] = {name: transcripts.read_hh(text) for name, text in held.items() if is_hh(text)}
    if dialogs.get("prompt", [{}])[-1] == {"role": "assistant", "content": ""}:
        dialogs["prompt"].pop()  # it ends where the answer begins
    if "prompt" in dialogs:
        answers = {name: text for name, text in held.items() if isinstance(text, str) and name not in dialogs}
        dialogs |= {name: [{"role": "assistant", "content": text.strip()}] for name, text in answers.items()}
    if "text" in dialogs:
        return ("messages",), {**{n: v for n, v in fields.items() if n != "text"}, "messages": dialogs["text"]}
    return names, {**fields, **dialogs}


def _glaive(fields: dict[str, Any]) -> Row:
    turns, functions = transcripts.read_glaive(fields["system"], fields["chat"])
    extra = {key: value for key, value in fields.items() if key not in ("system", "chat")}
    return TextRow(read_turns(turns, "chat"), tools=_tools(functions), extra=extra)


def _openai_preference(fields: Mapping[str, Any]) -> PreferenceRow:
    asked = fields["input"]
    if not isinstance(asked, Mapping) or "messages" not in asked:
        raise RowFault("malformed", "'input' has no 'messages'")
    if strange := sorted(set(asked) - {"messages", "tools", "parallel_tool_calls"}):
        raise RowFault("unknown field", f"'input' has {strange[0]!r} (known: messages, tools)")
    extra = {key: value for key, value in fields.items() if key not in _OPENAI}
    chosen, rejected = (read_turns(fields[name], name) for name in _OPENAI[1:])
    prompt = read_turns(asked["messages"], "input.messages")
    return PreferenceRow(prompt, chosen, rejected, tools=_tools(asked.get("tools")), extra=extra)


def _write_trl(row: Row, *, arguments_as_text: bool = False) -> dict[str, Any]:
    def plain(content: Content) -> Any:
        return content if isinstance(content, str) else write_turns(content, arguments_as_text=arguments_as_text)

    tools = {"tools": [dict(tool) for tool in row.tools]} if row.tools else {}
    if isinstance(row, StepwiseRow):
        return {
            "prompt": plain(row.prompt), "completions": [plain(step) for step in row.completions],
            "labels": list(row.labels), **tools,
        }  # fmt: skip
    written = {name: plain(content) for name, content in row.contents.items()}
    if isinstance(row, LabeledRow):
        written["label"] = row.label
    return {**written, **tools}


def _write_openai(row: Row) -> dict[str, Any]:
    written = _write_trl(row, arguments_as_text=True)
    if isinstance(row, PreferenceRow) and row.prompt is not None and row.conversational:
        asked = {"messages": written["prompt"], **({"tools": written["tools"]} if row.tools else {})}
        return dict(zip(_OPENAI, (asked, written["chosen"], written["rejected"]), strict=True))
    if not isinstance(row, TextRow) or not row.conversational:
        raise RowFault("not expressible", f"the layout 'openai' cannot hold this {row.kind} row")
    return written


def _content(value: object, field: str) -> Content:
    return value if isinstance(value, str) else read_turns(value, field)


def _tools(value: object) -> tuple[Mapping[str, Any], ...]:
    """Declared tools, which some files keep as JSON in a string."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise RowFault("malformed", "'tools' is a text that is not JSON") from None
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowFault("malformed", "'tools' is not a list of objects")
    return tuple(value)
