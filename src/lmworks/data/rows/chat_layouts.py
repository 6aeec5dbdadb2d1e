"""The layouts in which people keep conversations, each turned into validated messages.

Read are the chat layout (`messages`), ShareGPT (`conversations` of `from`/`value`), Alpaca
(`instruction`/`input`/`output`) and prompt/completion rows. Knows no file and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from lmworks.core.config import explain
from lmworks.core.messages import Message

_SHARE_GPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip


def parse_conversation(row: object) -> list[Message]:
    """Turn one row of any known layout into messages.

    Raises:
        ValueError: saying what is wrong with the row.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"the row is {'not JSON' if row is None else 'a ' + type(row).__name__}, not an object")
    for keys, convert in _LAYOUTS:
        if all(key in row for key in keys):
            messages = [_message(number, turn) for number, turn in enumerate(convert(row))]
            _check_order(messages)
            return messages
    layouts = ", ".join("+".join(keys) for keys, _ in _LAYOUTS)
    raise ValueError(f"fields {sorted(row)} fit no known layout ({layouts})")


Turn = Mapping[str, Any]


def _chat(row: Turn) -> list[Any]:
    return _list(row["messages"], "messages")


def _share_gpt(row: Turn) -> list[Turn]:
    turns: list[Turn] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for number, turn in enumerate(_list(row["conversations"], "conversations")):
        if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
            raise ValueError(f"turn {number} has no 'from' and 'value'")
        role = _SHARE_GPT_ROLES.get(str(turn["from"]).lower())
        if role is None:
            raise ValueError(f"turn {number} is from {turn['from']!r}, known are {', '.join(_SHARE_GPT_ROLES)}")
        turns.append({"role": role, "content": turn["value"]})
    return turns


def _alpaca(row: Turn) -> list[Turn]:
    request = "\n\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
    system: list[Turn] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": request}, {"role": "assistant", "content": row["output"]}]


def _prompt_completion(row: Turn) -> list[Turn]:
    prompt, completion = row["prompt"], row["completion"]
    asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answered = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return [*asked, *answered]


def _prompt_response(row: Turn) -> list[Turn]:
    return _prompt_completion({"prompt": row["prompt"], "completion": row["response"]})


_LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Turn], list[Any]]], ...] = (
    (("messages",), _chat),
    (("conversations",), _share_gpt),
    (("instruction", "output"), _alpaca),
    (("prompt", "completion"), _prompt_completion),
    (("prompt", "response"), _prompt_response),
)


def _list(value: object, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{field!r} is a {type(value).__name__}, not a list of turns")
    return value


def _message(number: int, turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"message {number} is a {type(turn).__name__}, not an object")
    values = {key: value for key, value in turn.items() if key in Message.model_fields and value is not None}
    if turn.get("content") is None and turn.get("tool_calls"):
        values["content"] = ""  # a turn that only calls tools has null content in the chat layout
    try:
        return Message.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"message {number}: {explain(Message, error)}") from None


def _check_order(messages: list[Message]) -> None:
    """A conversation opens with the user (after an optional system turn), alternates, and has something to learn."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise ValueError("the conversation has no turns")
    if turns[0].role != "user":
        raise ValueError(f"the first turn is {turns[0].role!r}, it must be 'user'")
    before = {"user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"assistant", "tool"}, "system": set[str]()}
    for number, (previous, turn) in enumerate(pairwise(turns), 1):
        if previous.role not in before[turn.role]:
            raise ValueError(f"turn {number} ({turn.role!r}) cannot follow {previous.role!r}")
    if not any(m.role == "assistant" and (m.content.strip() or m.tool_calls) for m in turns):
        raise ValueError("no assistant turn has any content, so there is nothing to learn")
