"""Calls written as tags, a tag for every argument, into JSON. Knows no reasoning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmworks.protocol.argument_types import json_types, typed_json
from lmworks.protocol.call_reader import MAX_NAME
from lmworks.protocol.json_scanner import Verdict
from lmworks.protocol.output_events import CallWriter
from lmworks.protocol.tool_formats import ToolFormat

_TEXT = frozenset({"string"})


class XmlCalls:
    """A tag with the name and a tag for every argument. Text is passed on as it comes, other values when complete."""

    def __init__(self, tool_format: ToolFormat, writer: CallWriter) -> None:
        assert tool_format.tags is not None, "the xml syntax has tags"
        self._tags, self._end, self._writer = tool_format.tags, tool_format.end, writer
        self.represented = False
        self._any = False
        self._text = ""
        """Of a marker, name or value, what has come and was not passed on."""
        self._state = "between" if self._tags.name_begin else "name"

    def feed(self, character: str) -> Verdict:
        """Take one character."""
        verdict: Verdict = getattr(self, f"_in_{self._state}")(character)
        return verdict

    def finish(self) -> None:
        """Pass on the end of a text that might have been a closing tag."""
        if self._state == "value" and self._types == _TEXT:
            self._pass_on(self._text)
            self.represented = True

    def _in_between(self, character: str) -> Verdict:
        self.represented = False
        found = self._marker(character, self._tags.name_begin, self._end if self._any else "")
        if found == "":
            return Verdict.BEFORE if self._any else Verdict.FAULT
        if found == self._end:
            return Verdict.DONE
        self._state = "name" if found else "between"
        return Verdict.MORE

    def _marker(self, character: str, *expected: str) -> str | None:
        """The expected marker that is complete now; None while one may become so; empty if none can."""
        if not self._text and character.isspace():
            return None
        self._text += character
        if self._text in expected:
            found, self._text = self._text, ""
            return found
        return None if any(marker.startswith(self._text) for marker in expected) else ""

    def _in_name(self, character: str) -> Verdict:
        closing = self._tags.name_end
        if closing:
            self._text += character
            ended = self._text.endswith(closing)
            name = self._text.removesuffix(closing).strip()
        else:
            name = self._text.strip()
            ended = bool(name) and (character.isspace() or character == "<")
            self._text += "" if ended else character
        if not ended:
            return Verdict.MORE if len(self._text) <= MAX_NAME else Verdict.FAULT
        self._text = ""
        if not name or any(c.isspace() or c in '<>"{}' for c in name):
            return Verdict.FAULT
        schema = self._writer.schemas.get(name)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        self._properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self._keys: set[str] = set()
        self._writer.start(name)
        self.represented, self._state, self._any = True, "items", True
        return Verdict.MORE if closing else self._in_items(character)

    def _in_items(self, character: str) -> Verdict:
        found = self._marker(character, self._tags.key_begin, self._tags.call_end or self._end)
        self.represented = bool(found)
        if found is None:
            return Verdict.MORE
        if found == self._tags.key_begin:
            self._state = "key"
            return Verdict.MORE
        self._writer.arguments("}" if self._keys else "{}")
        self._state = "between"
        if not found:
            return Verdict.BEFORE
        return Verdict.MORE if self._tags.call_end else Verdict.DONE

    def _in_key(self, character: str) -> Verdict:
        self.represented = False
        self._text += character
        if not self._text.endswith(self._tags.key_end):
            return Verdict.MORE if len(self._text) <= MAX_NAME else Verdict.FAULT
        key = self._text.removesuffix(self._tags.key_end).strip()
        if not key or key in self._keys:
            return Verdict.FAULT
        self._text, self._key, self._types = "", key, json_types(self._properties.get(key))
        self._state = "value_begin" if self._tags.value_begin else "value"
        self._fresh, self._opened = True, False
        return Verdict.MORE

    def _in_value_begin(self, character: str) -> Verdict:
        found = self._marker(character, self._tags.value_begin)
        if found:
            self._state = "value"
        return Verdict.FAULT if found == "" else Verdict.MORE

    def _in_value(self, character: str) -> Verdict:
        pad, closing = self._tags.pad, self._tags.value_end
        fresh, self._fresh = self._fresh, False
        if fresh and character == pad:
            return Verdict.MORE
        self._text += character
        if self._text.endswith(closing):
            value = self._text.removesuffix(closing).removesuffix(pad)
            if self._types == _TEXT:
                self._pass_on(value)
                self._writer.arguments('"')
            else:
                self._open(typed_json(value, self._types))
            self._text, self._state, self.represented = "", "items", True
        elif self._types == _TEXT and len(self._text) > len(closing) + len(pad):
            # Held back: what may be the closing tag, and the line break before it.
            self._pass_on(self._text[0])
            self._text = self._text[1:]
        return Verdict.MORE

    def _pass_on(self, text: str) -> None:
        """More of a text."""
        if not self._opened:
            self._open('"')
        self._writer.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def _open(self, value: str) -> None:
        """The key, and its value or the beginning of it."""
        key = json.dumps(self._key, ensure_ascii=False)
        self._writer.arguments(f"{', ' if self._keys else '{'}{key}: {value}")
        self._keys.add(self._key)
        self._opened = self.represented = True
