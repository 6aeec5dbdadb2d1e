"""Which licences a document may be under, as SPDX expressions say it. Knows no text.

An expression `A OR B` is allowed when one side is, `A AND B` when both are; an exception (`WITH`) only widens what a
licence permits and is not looked at. What is no expression is one name, such as `unspecified`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lmworks.core.config import Config
from lmworks.core.generation import Document
from lmworks.data.steps import Dropped, Tally

_TOKEN = re.compile(r"\(|\)|[^\s()]+")
_OPERATORS = ("AND", "OR", "WITH")


class LicenseConfig(Config):
    """Licences by SPDX identifier or shell pattern (`CC-BY-*`), without regard to case."""

    allow: tuple[str, ...] = ()
    """Only these; none allows every licence that is not denied."""
    deny: tuple[str, ...] = ()
    """Never these, also where a pattern of `allow` fits."""

    def permits(self, expression: str) -> bool:
        """Whether a document under this licence may stay.

        Args:
            expression: of SPDX, such as `MIT OR (Apache-2.0 AND BSD-3-Clause)`, or any other name.
        """
        tokens = _TOKEN.findall(expression)
        verdict = _Reader(tokens, self._permits_one).read()
        return self._permits_one(expression) if verdict is None else verdict

    def _permits_one(self, identifier: str) -> bool:
        name = identifier.casefold()

        def fits(patterns: tuple[str, ...]) -> bool:
            return any(fnmatchcase(name, pattern.casefold()) for pattern in patterns)

        return not fits(self.deny) and (not self.allow or fits(self.allow))


class _Reader:
    """Reads an expression by recursive descent: OR binds least, then AND, then WITH."""

    def __init__(self, tokens: list[str], permits: Callable[[str], bool]) -> None:
        self._tokens, self._at, self._permits = tokens, 0, permits

    def read(self) -> bool | None:
        """The verdict; None of what is no expression."""
        verdict = self._either()
        return verdict if self._at == len(self._tokens) else None

    def _either(self) -> bool | None:
        return self._joined("OR", self._both)

    def _both(self) -> bool | None:
        return self._joined("AND", self._one)

    def _joined(self, operator: str, part: Callable[[], bool | None]) -> bool | None:
        verdicts = [part()]
        while self._next() == operator:
            self._at += 1
            verdicts.append(part())
        if None in verdicts:
            return None
        return any(verdicts) if operator == "OR" else all(verdicts)

    def _one(self) -> bool | None:
        token = self._next()
        self._at += 1
        if token == "(":
            verdict = self._either()
            closed = self._next() == ")"
            self._at += 1
            return verdict if closed else None
        if not token or token == ")" or token.upper() in _OPERATORS:
            return None
        if self._next() == "WITH":
            self._at += 2
        return self._permits(token)

    def _next(self) -> str:
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        return token.upper() if token.upper() in _OPERATORS else token


@dataclass(frozen=True)
class LicenseStep:
    """Keep documents whose licence is permitted."""

    config: LicenseConfig

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`; the licences that were lost are counted by name."""
        if self.config.permits(document.license):
            return document
        tally.count("lost_licenses", document.license)
        return Dropped("license/not_allowed", 0.0)
