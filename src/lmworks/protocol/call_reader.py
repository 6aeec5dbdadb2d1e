"""What reads the calls between a pair of markers, a character at a time; a reader for each syntax. Knows no reasoning.

A reader is fed what follows the opening marker. It begins a call as soon as its name and the beginning of its
arguments are known, passes arguments on as they come, and stops at the first character that fits no call; what it has
not passed on by then is text again.
"""

from __future__ import annotations

from typing import Protocol

from lmworks.protocol.json_scanner import Verdict

MAX_NAME = 256
"""Characters of a name, or between a name and its arguments."""


class CallReader(Protocol):
    """Reads the calls between one pair of markers."""

    represented: bool
    """Whether all that was fed has become events, or was the syntax of calls that have."""

    def feed(self, character: str) -> Verdict:
        """MORE, DONE after the closing marker, BEFORE where the calls ended earlier, FAULT where there is none."""
        ...

    def finish(self) -> None:
        """Pass on what was held back, when the text is over."""
        ...


class Closing:
    """What comes after a call: whitespace, then the closing marker if the format has one."""

    def __init__(self, marker: str) -> None:
        self._marker = marker.strip()
        self._at = 0

    def feed(self, character: str) -> Verdict:
        """MORE, DONE, or BEFORE where something else stands there."""
        if self._marker and character == self._marker[self._at]:
            self._at += 1
            return Verdict.DONE if self._at == len(self._marker) else Verdict.MORE
        return Verdict.MORE if character.isspace() and not self._at else Verdict.BEFORE
