"""JSON as rows need it: what readers would take differently, or could not write again, is a fault. Knows no file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lmworks.data.rows.values import RowFault

MAX_DEPTH = 100
"""Of lists and objects in each other; Python's own functions give up at several hundred, others' before."""
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Decoder:
    """Reads values out of a text, and goes on behind one that is only faulty."""

    def __init__(self) -> None:
        self._fault: RowFault | None = None
        """The first of the value being read."""
        self._json = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_constant=self._constant, parse_int=self._integer
        )

    def at(self, text: str, begin: int) -> tuple[object, int, RowFault | None]:
        """The value that begins at a character, the place behind it, and what is wrong with it.

        Raises:
            RowFault: there is none, so that nobody knows where it ends.
        """
        self._fault = None
        try:
            value, end = self._json.raw_decode(text, begin)
        except json.JSONDecodeError as error:
            raise RowFault("malformed", f"not JSON: {error.msg} at character {error.pos - begin + 1}") from None
        except RecursionError:
            raise RowFault("nesting", f"lists and objects are nested more than {MAX_DEPTH} deep") from None
        written = text[begin:end]
        if written.count("[") + written.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
            self._note(RowFault("nesting", f"lists and objects are nested more than {MAX_DEPTH} deep"))
        elif _ESCAPED_SURROGATE.search(written) and (half := _half_character(value)):
            self._note(RowFault("lone surrogate", half))
        return value, end, self._fault

    def whole(self, text: str) -> object:
        """The only value of a text.

        Raises:
            RowFault: it is no JSON, or faulty.
        """
        begin = blank(text, 0)
        value, end, fault = self.at(text, begin)
        if fault is not None:
            raise fault
        if (end := blank(text, end)) < len(text):
            raise RowFault("malformed", f"not JSON: more follows at character {end + 1}")
        return value

    def _note(self, fault: RowFault) -> None:
        self._fault = self._fault or fault

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            self._note(RowFault("name twice", f"the name {next(n for n in names if names.count(n) > 1)!r} comes twice"))
        return value

    def _constant(self, name: str) -> float:
        self._note(RowFault("no number", f"{name} is no number of JSON"))
        return 0.0

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:
            self._note(RowFault("no number", f"a whole number has {len(digits)} digits"))
            return 0


def blank(text: str, begin: int) -> int:
    """Where the white space of JSON that begins at a character ends."""
    while text[begin : begin + 1] in (" ", "\n", "\r", "\t"):
        begin += 1
    return begin


def _deeper(value: object, most: int) -> bool:
    """Whether lists and objects are nested more than `most` deep; without recursion, as the value may be hostile."""
    level = [value]
    for _ in range(most + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not inner:
            return False
        level = [one for some in inner for one in some]
    return True


def _half_character(value: object) -> str:
    """Where a value holds half of a pair of surrogates, which no UTF-8 can hold; empty where it does not."""
    for name, inner in value.items() if isinstance(value, Mapping) else [("", value)]:
        try:
            json.dumps([name, inner], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            return f"{name.encode('utf-8', 'replace').decode()!r} holds half a character (U+{half:04X})"
    return ""
