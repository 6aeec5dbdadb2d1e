"""Pieces of Lark's grammar notation, as `llguidance` reads it. Knows no tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

ANY_TEXT = r"/(.|\n)*/"


class LarkWriter:
    """Collects rules.

    Args:
        special_tokens: ids of the tokenizer's special tokens by their text. No text spells these: where a marker is
            one, the grammar names the token.
    """

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special = dict(special_tokens)
        names = sorted(self._special, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)()")
        self._rules: dict[str, str] = {}

    def rule(self, name: str, body: str) -> str:
        """Define a rule; returns its name."""
        self._rules[name] = body
        return name

    def literal(self, text: str) -> str:
        """Exactly this text."""
        pieces = [piece for piece in self._split.split(text) if piece]
        return " ".join(self._token(p) if p in self._special else json.dumps(p, ensure_ascii=False) for p in pieces)

    def up_to(self, name: str, marker: str) -> str:
        """Any text up to a marker and the marker itself, which ends it at once; returns the rule's name."""
        first, *rest = [piece for piece in self._split.split(marker) if piece]
        if first in self._special:
            return self.rule(name, f"{ANY_TEXT} {self.literal(marker)}")
        self.rule(f"{name}_head[lazy]", f"TEXT {json.dumps(first, ensure_ascii=False)}")
        self._rules["TEXT"] = ANY_TEXT
        return self.rule(name, f"{name}_head {self.literal(''.join(rest))}")

    def other_special(self, *markers: str) -> str:
        """Any special token that none of these markers contains; empty if there is none."""
        used = {piece for marker in markers for piece in self._split.split(marker)}
        ids = sorted(i for text, i in self._special.items() if text not in used)
        return f"<[{','.join(map(str, ids))}]>" if ids else ""

    def is_special(self, marker: str) -> bool:
        """Whether a marker begins with a special token."""
        return next((piece for piece in self._split.split(marker) if piece), "") in self._special

    def text(self) -> str:
        """The grammar."""
        return "%llguidance {}\n" + "".join(f"{name}: {body}\n" for name, body in self._rules.items())

    def _token(self, text: str) -> str:
        return f"<[{self._special[text]}]>"
