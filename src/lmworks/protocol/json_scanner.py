"""JSON, a character at a time: where a value ends, and whether what came so far can still become one.

Line breaks and other control characters inside strings, which models write and JSON forbids, are escaped; everything
else is passed on as it was written. Knows no tools.
"""

from __future__ import annotations

import json
from enum import Enum, auto

MAX_DEPTH = 256
_WHITESPACE = frozenset(" \t\n\r")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_DIGITS = "0123456789"


def _moves(*rows: tuple[str, str, str]) -> dict[tuple[str, str], str]:
    return {(state, character): after for state, characters, after in rows for character in characters}


_NUMBER = _moves(
    ("minus", "0", "zero"), ("minus", "123456789", "integer"), ("integer", _DIGITS, "integer"),
    ("zero", ".", "point"), ("integer", ".", "point"), ("point", _DIGITS, "fraction"),
    ("fraction", _DIGITS, "fraction"), ("zero", "eE", "e"), ("integer", "eE", "e"), ("fraction", "eE", "e"),
    ("e", "+-", "sign"), ("e", _DIGITS, "exponent"), ("sign", _DIGITS, "exponent"), ("exponent", _DIGITS, "exponent"),
)  # fmt: skip
_WHOLE_NUMBERS = frozenset({"zero", "integer", "fraction", "exponent"})


class Verdict(Enum):
    """What a character did."""

    MORE = auto()
    """The value goes on."""
    DONE = auto()
    """It is the value's last."""
    BEFORE = auto()
    """The value ended before it."""
    FAULT = auto()
    """No value continues so."""


class JsonScanner:
    """Reads one value, whitespace before it included."""

    def __init__(self) -> None:
        self._state = "value"
        self._stack: list[str] = []
        self._is_key = False
        self._left = ""
        """Of a literal, the letters to come; of a `\\u` escape, a character for every digit to come."""
        self.written = ""
        """The last character as JSON has it."""

    def feed(self, character: str) -> Verdict:
        """Take one character; after anything but MORE the scanner is spent."""
        self.written = character
        state = self._state
        if state == "string":
            return self._string(character)
        if state == "escape":
            if character == "u":
                self._state, self._left = "hex", "0000"
                return Verdict.MORE
            self._state = "string"
            return Verdict.MORE if character in '"\\/bfnrt' else Verdict.FAULT
        if state == "hex":
            self._left = self._left[1:]
            self._state = "hex" if self._left else "string"
            return Verdict.MORE if character in "0123456789abcdefABCDEF" else Verdict.FAULT
        if state == "literal":
            if character != self._left[0]:
                return Verdict.FAULT
            self._left = self._left[1:]
            return Verdict.MORE if self._left else self._ended()
        if (state, character) in _NUMBER:
            self._state = _NUMBER[state, character]
            return Verdict.MORE
        if state in _WHOLE_NUMBERS:
            if self._ended() is Verdict.DONE:
                return Verdict.BEFORE
        elif state in ("minus", "point", "e", "sign"):
            return Verdict.FAULT
        return Verdict.MORE if character in _WHITESPACE else self._structure(character)

    def _string(self, character: str) -> Verdict:
        if character == '"':
            if not self._is_key:
                return self._ended()
            self._state = "colon"
        elif character == "\\":
            self._state = "escape"
        elif character < " ":
            self.written = json.dumps(character)[1:-1]
        return Verdict.MORE

    def _structure(self, character: str) -> Verdict:
        state = self._state
        if state == "colon":
            self._state = "value"
            return Verdict.MORE if character == ":" else Verdict.FAULT
        if character in "}]" and state in ("first", "after"):
            if self._stack.pop() != character:
                return Verdict.FAULT
            return self._ended()
        if state == "after":
            self._state = "key" if self._stack[-1] == "}" else "value"
            return Verdict.MORE if character == "," else Verdict.FAULT
        if state == "key" or (state == "first" and self._stack[-1] == "}"):
            self._state, self._is_key = "string", True
            return Verdict.MORE if character == '"' else Verdict.FAULT
        return self._begin(character)

    def _begin(self, character: str) -> Verdict:
        if character in "{[":
            self._stack.append("}" if character == "{" else "]")
            self._state = "first"
            return Verdict.MORE if len(self._stack) <= MAX_DEPTH else Verdict.FAULT
        if character == '"':
            self._state, self._is_key = "string", False
        elif character in _LITERALS:
            self._state, self._left = "literal", _LITERALS[character][1:]
        elif character == "-":
            self._state = "minus"
        elif character in _DIGITS:
            self._state = "zero" if character == "0" else "integer"
        else:
            return Verdict.FAULT
        return Verdict.MORE

    def _ended(self) -> Verdict:
        self._state = "after"
        return Verdict.MORE if self._stack else Verdict.DONE
