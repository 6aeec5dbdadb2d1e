"""Calls written as Python, `f(city="Paris", days=3)`, into JSON. Knows no reasoning."""

from __future__ import annotations

import json

from lmworks.protocol.call_reader import MAX_NAME, Closing
from lmworks.protocol.json_scanner import Verdict
from lmworks.protocol.output_events import CallWriter
from lmworks.protocol.python_literals import python_to_json
from lmworks.protocol.tool_formats import ToolFormat

_OPENING, _CLOSING = "([{", ")]}"


class PythonCalls:
    """`f(city="Paris", days=3)`: alone, in a list, or one a line. An argument is passed on when it is complete."""

    def __init__(self, tool_format: ToolFormat, writer: CallWriter, bare: bool) -> None:
        self._format, self._writer, self._bare = tool_format, writer, bare
        self.represented = False
        self._state = "between"
        self._in_list = self._any = False
        self._closing: Closing | None = None

    def feed(self, character: str) -> Verdict:
        """Take one character."""
        if self._closing is not None:
            self.represented = False
            return self._closing.feed(character)
        verdict: Verdict = getattr(self, f"_in_{self._state}")(character)
        return verdict

    def finish(self) -> None:
        """Nothing is held back."""

    def _in_between(self, character: str) -> Verdict:
        self.represented = self.represented and character == "]"
        if character.isidentifier() and (self._in_list or not self._format.is_list):
            self._state, self._name, self._keys = "name", character, set[str]()
        elif character == "[" and not self._in_list and not self._any:
            self._in_list = True
        elif character == "]" and self._in_list and self._any:
            self._closing = Closing(self._format.end)
            return Verdict.MORE if self._format.end else Verdict.DONE
        elif not character.isspace() and not (character == "," and self._any):
            if not self._any or self._in_list:
                return Verdict.FAULT
            self._closing = Closing(self._format.end)
            return self._closing.feed(character)
        return Verdict.MORE

    def _in_name(self, character: str) -> Verdict:
        if character == "(":
            self._state = "key"
            self._key = ""
            return Verdict.FAULT if self._bare and not self._writer.knows(self._name) else Verdict.MORE
        self._name += character
        return Verdict.MORE if (character.isalnum() or character in "_.-") else Verdict.FAULT

    def _in_key(self, character: str) -> Verdict:
        """After `(` or a comma: a name, or the end."""
        self.represented = False
        if character == "=" and self._key:
            if self._key in self._keys or not self._key.strip().isidentifier():
                return Verdict.FAULT
            self._state, self._value, self._open = "value", "", ""
            self._quote = self._within = ""
            return Verdict.MORE
        if character == ")" and not self._key.strip():
            return self._end()
        self._key += character if self._key or not character.isspace() else ""
        plain = character.isalnum() or character == "_" or character.isspace()
        return Verdict.MORE if plain and len(self._key) <= MAX_NAME else Verdict.FAULT

    def _in_value(self, character: str) -> Verdict:
        if self._quote:
            if self._quote == "\\":
                self._quote = self._within
            elif character == "\\":
                self._quote = "\\"
            elif character == self._quote:
                self._quote = ""
        elif character in "'\"":
            self._quote = self._within = character
        elif character in _OPENING:
            self._open += _CLOSING[_OPENING.index(character)]
        elif not self._open and character in ",)":
            return self._argument(character)
        elif character in _CLOSING:
            if self._open[-1:] != character:
                return Verdict.FAULT
            self._open = self._open[:-1]
        self._value += character
        return Verdict.MORE

    def _argument(self, character: str) -> Verdict:
        key = self._key.strip()
        try:
            value = python_to_json(self._value)
        except ValueError:
            return Verdict.FAULT
        self._begin()
        self._writer.arguments(f"{', ' if self._keys else '{'}{json.dumps(key, ensure_ascii=False)}: {value}")
        self._keys.add(key)
        self._key, self._state = "", "key"
        return self._end() if character == ")" else Verdict.MORE

    def _begin(self) -> None:
        if not self._keys:
            self._writer.start(self._name)
        self.represented = True

    def _end(self) -> Verdict:
        self._begin()
        self._writer.arguments("}" if self._keys else "{}")
        self._state, self._any = "between", True
        return Verdict.MORE if self._in_list or self._format.end else Verdict.DONE
