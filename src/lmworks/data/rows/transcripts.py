r"""Conversations that are kept as one text, the speakers named in it: Anthropic's HH and Glaive's. Knows no file.

| layout | text |
|---|---|
| HH (Bai et al. 2022, arXiv:2204.05862) | `\n\nHuman: …\n\nAssistant: …`, in `chosen`/`rejected`, `prompt`, `text` |
| Glaive | `chat`: `USER: …\n\n\nASSISTANT: … <|endoftext|>`, calls of tools behind `<functioncall>`; `system` |
"""

from __future__ import annotations

import re
from typing import Any

from lmworks.data.rows.json_text import Decoder, blank
from lmworks.data.rows.turns import read_calls
from lmworks.data.rows.values import RowFault

_HH = re.compile(r"\n\n(Human|Assistant):")
_GLAIVE = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_CALL = re.compile(r"<functioncall>\s*(\{.*\})\s*$", re.DOTALL)
_QUOTED_ARGUMENTS = re.compile(r"(\"arguments\":\s*)'(.*)'(\s*\})$", re.DOTALL)
_SAID = {"Human": "user", "Assistant": "assistant", "USER": "user", "ASSISTANT": "assistant",
         "FUNCTION RESPONSE": "tool"}  # fmt: skip
_OPENING = "SYSTEM:"


def is_hh(text: object) -> bool:
    """Whether a text is a dialog of HH."""
    return isinstance(text, str) and _HH.match(text) is not None


def read_hh(text: str) -> list[dict[str, str]]:
    """The turns of a dialog of HH, white space around them left out."""
    return _turns(_HH, text)


def read_glaive(system: str, chat: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """The turns of a row of Glaive and the functions that its system text declares.

    Raises:
        RowFault: a call or a function is not JSON.
    """
    said, brace, listed = system.removeprefix(_OPENING).strip().partition("{")
    functions: list[Any] = []
    json_text, rest = Decoder(), brace + listed
    while rest:
        value, end, fault = json_text.at(rest, 0)
        if fault is not None:
            raise fault
        functions.append({"type": "function", "function": value})
        rest = rest[blank(rest, end) :]
    turns = [_with_call(number, turn) for number, turn in enumerate(_turns(_GLAIVE, chat.replace("<|endoftext|>", "")))]
    # What introduces the list of functions goes with it; a chat template writes its own.
    opening = [{"role": "system", "content": said}] if said and not functions else []
    return [*opening, *turns], functions


def _with_call(number: int, turn: dict[str, str]) -> dict[str, Any]:
    found = _CALL.search(turn["content"]) if turn["role"] == "assistant" else None
    if found is None:
        return dict(turn)
    written = found[1]
    arguments: object = None
    if quoted := _QUOTED_ARGUMENTS.search(written):  # JSON in quotes of another language, so that JSON it is not
        arguments = Decoder().whole(quoted[2].replace("\\'", "'"))
        written = f"{written[: quoted.start()]}{quoted[1]}null{quoted[3]}"
    (call,) = read_calls(number, written)
    if arguments is not None:
        call["function"]["arguments"] = arguments
    return {"role": "assistant", "content": turn["content"][: found.start()].strip(), "tool_calls": [call]}


def _turns(marks: re.Pattern[str], text: str) -> list[dict[str, str]]:
    found = list(marks.finditer(text))
    if not found or text[: found[0].start()].strip():
        raise RowFault("malformed", "the dialog does not begin with a speaker")
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    return [
        {"role": _SAID[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(found, ends, strict=True)
    ]
