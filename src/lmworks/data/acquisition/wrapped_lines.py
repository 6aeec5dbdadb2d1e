"""Joins the lines of a paragraph that was wrapped at some width, as its language writes. Knows no markup."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WIDE = "\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\u3000-\u303f\u2018-\u201d\u2026"
"""Chinese and Japanese characters with their punctuation, between which no space is written."""
_NO_SPACE = re.compile(f"(?<=[{_WIDE}])\n(?=[{_WIDE}])")


def unwrapped(lines: Iterable[str]) -> str:
    """One line: parts meet with a space, and without one between Chinese or Japanese characters."""
    return _NO_SPACE.sub("", "\n".join(stripped for line in lines if (stripped := line.strip()))).replace("\n", " ")
