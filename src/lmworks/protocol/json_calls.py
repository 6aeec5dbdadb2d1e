"""Calls written as JSON: `json` and `named` of `tool_formats`. Knows no reasoning."""

from __future__ import annotations

import json

from lmworks.protocol.call_reader import MAX_NAME, Closing
from lmworks.protocol.json_scanner import JsonScanner, Verdict
from lmworks.protocol.output_events import CallWriter
from lmworks.protocol.tool_formats import ToolFormat

NAME_KEYS = frozenset({"name", "tool_name"})
ARGUMENTS_KEYS = frozenset({"arguments", "parameters"})


class JsonCalls:
    """Objects `{"name": …, "arguments": {…}}`, alone, one after another, or in a list."""

    def __init__(self, tool_format: ToolFormat, writer: CallWriter, bare: bool) -> None:
        self._format, self._writer, self._bare = tool_format, writer, bare
        self.represented = False
        self._state = "between"
        self._in_list = False
        self._any = False
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
        self.represented = self.represented and character in "[]"
        if character == "{":
            self._state, self._name, self._arguments, self._begun = "entry", "", "", False
            return Verdict.MORE
        if character == "[" and not self._in_list and not self._any:
            self._in_list = True
        elif character == "]" and self._in_list and self._any:
            self._closing = Closing(self._format.end)
            return Verdict.MORE if self._format.end else Verdict.DONE
        elif character not in " \t\r\n,;" or (character in ",;" and not self._any):
            if not self._any or self._in_list:
                return Verdict.FAULT
            self._closing = Closing(self._format.end)
            return self._closing.feed(character)
        return Verdict.MORE

    def _in_entry(self, character: str) -> Verdict:
        """After `{` or a comma in it."""
        if character == '"':
            self._state, self._scanner, self._text = "key", JsonScanner(), '"'
            return self._scanner.feed(character)
        if character == "}" and self._name:
            return self._end()
        return Verdict.MORE if character.isspace() else Verdict.FAULT

    def _in_key(self, character: str) -> Verdict:
        verdict = self._scanner.feed(character)
        self._text += self._scanner.written
        if verdict is Verdict.DONE:
            self._state, self._keyed = "colon", json.loads(self._text)
            return Verdict.MORE
        return verdict

    def _in_colon(self, character: str) -> Verdict:
        if character == ":":
            self._state, self._scanner, self._text = "value", JsonScanner(), ""
            self._live = self._keyed in ARGUMENTS_KEYS and not self._arguments
            return Verdict.MORE
        return Verdict.MORE if character.isspace() else Verdict.FAULT

    def _in_value(self, character: str) -> Verdict:
        verdict = self._scanner.feed(character)
        if verdict is Verdict.FAULT:
            return verdict
        if verdict is not Verdict.BEFORE and (self._text or not character.isspace()):
            self._text += self._scanner.written
            if self._live and self._name and self._text[0] == "{":
                self._pass_on(self._scanner.written)
        if verdict is Verdict.MORE:
            return verdict
        if not self._keep():
            return Verdict.FAULT
        self._state = "ended"
        return self._in_ended(character) if verdict is Verdict.BEFORE else Verdict.MORE

    def _keep(self) -> bool:
        """Take the value that ended; False if it can be no call's."""
        if self._live:
            self._arguments = self._text
            if self._text[0] != "{":
                # Some models write the arguments as a string that holds JSON, as the wire does; null means none.
                self._arguments = _object_in(self._text)
            return bool(self._arguments)
        if self._keyed in NAME_KEYS and not self._name:
            name = json.loads(self._text)
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
                return False
            self._name = name
            return not self._bare or self._writer.knows(name)
        return True

    def _in_ended(self, character: str) -> Verdict:
        """After a value."""
        if character == ",":
            self._state = "entry"
            return Verdict.MORE
        if character == "}":
            return self._end()
        return Verdict.MORE if character.isspace() else Verdict.FAULT

    def _end(self) -> Verdict:
        if not self._name or (self._bare and not self._arguments):
            return Verdict.FAULT
        if not self._begun:
            self._pass_on(self._arguments or "{}")
        self._state, self._any = "between", True
        if self._format.end or self._in_list or self._format.separator.strip():
            return Verdict.MORE
        return Verdict.DONE

    def _pass_on(self, text: str) -> None:
        if not self._begun:
            self._writer.start(self._name)
            self._begun = self.represented = True
        self._writer.arguments(text)


class NamedCalls:
    """A name, a marker, then the arguments as JSON."""

    def __init__(self, tool_format: ToolFormat, writer: CallWriter) -> None:
        self._format, self._writer = tool_format, writer
        self.represented = False
        self._name = self._gap = ""
        self._named = False
        self._scanner: JsonScanner | None = None
        self._closing: Closing | None = None

    def feed(self, character: str) -> Verdict:
        """Take one character."""
        if self._closing is not None:
            self.represented = False
            return self._closing.feed(character)
        if self._scanner is not None:
            return self._argument(self._scanner, character)
        if not self._named and (character.isalnum() or character in "_-."):
            self._name += character
            return Verdict.MORE if len(self._name) <= MAX_NAME else Verdict.FAULT
        if not self._name:
            return Verdict.MORE if character.isspace() else Verdict.FAULT
        self._named = True
        self._gap += character
        if self._gap.endswith(self._format.arguments_marker):
            self._scanner = JsonScanner()
        return Verdict.MORE if len(self._gap) <= MAX_NAME else Verdict.FAULT

    def finish(self) -> None:
        """Nothing is held back."""

    def _argument(self, scanner: JsonScanner, character: str) -> Verdict:
        if not self.represented:
            if character.isspace():
                return Verdict.MORE
            if character != "{":
                return Verdict.FAULT
            self._writer.start(self._name)
            self.represented = True
        verdict = scanner.feed(character)
        if verdict is Verdict.FAULT:
            return verdict
        self._writer.arguments(scanner.written)
        if verdict is Verdict.DONE and self._format.end:
            self._closing = Closing(self._format.end)
            return Verdict.MORE
        return verdict


def _object_in(text: str) -> str:
    """The JSON object in a JSON string; `{}` for null; empty if there is none."""
    inner = json.loads(text)
    if inner is None:
        return "{}"
    if not isinstance(inner, str):
        return ""
    scanner, written = JsonScanner(), ""
    for character in inner.strip():
        verdict = scanner.feed(character)
        written += scanner.written
        if verdict is not Verdict.MORE:
            break
    return written if written[:1] == "{" and verdict is Verdict.DONE else ""
