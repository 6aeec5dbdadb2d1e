"""Which licences a document may be under, as SPDX expressions say it. Knows no text.

An expression `A OR B` (or `A/B`, as package indexes had it) is allowed when one side is, `A AND B` when both are; an
exception (`WITH`) only widens what a licence permits and is not looked at. The GNU licences' older names are those of
today: `GPL-2.0` is `GPL-2.0-only`, `GPL-2.0+` is `GPL-2.0-or-later`. Who may take a later version may take this one, so
`-or-later` and `+` are allowed where the version itself is. What is no expression is one name, such as `unspecified`;
as nobody knows what it means, it is also denied when one of its words is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import field_validator

from lmworks.core.config import Config
from lmworks.core.generation import Document
from lmworks.data.steps import Dropped, Tally

_TOKEN = re.compile(r"[()/]|[^\s()/]+")
_WORD = re.compile(r"[^\s()/,;|&]+")
_OPERATORS = ("AND", "OR", "WITH")
_OF_GNU = re.compile(r"(a?gpl|lgpl|gfdl)-\d[\d.]*")
_LATER = re.compile(r"(.+?)(?:-or-later|\+)")
_MOST_NESTED = 50


class LicenseConfig(Config):
    """Licences by SPDX identifier or shell pattern (`CC-BY-*`), without regard to case."""

    allow: tuple[str, ...] = ()
    """Only these; none allows every licence that is not denied."""
    deny: tuple[str, ...] = ()
    """Never these, also where a pattern of `allow` fits."""

    @field_validator("allow", "deny")
    @classmethod
    def _names(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern.strip() or any(word.upper() in _OPERATORS for word in pattern.split()):
                raise ValueError(f"{pattern!r} is no name of a licence: give identifiers one by one, such as 'MIT'")
        return tuple(pattern.strip() for pattern in patterns)

    def permits(self, expression: str) -> bool:
        """Whether a document under this licence may stay.

        Args:
            expression: of SPDX, such as `MIT OR (Apache-2.0 AND BSD-3-Clause)`, or any other name.
        """
        verdict = _Reader(_TOKEN.findall(expression), self._permits_one).read()
        if verdict is not None:
            return verdict
        return self._permits_one(expression.strip()) and not any(map(self._denies, _WORD.findall(expression)))

    def _permits_one(self, identifier: str) -> bool:
        later = _LATER.fullmatch(identifier.casefold())
        allowed = not self.allow or _fits(identifier, self.allow) or (later and _fits(later[1], self.allow))
        return bool(allowed) and not self._denies(identifier)

    def _denies(self, identifier: str) -> bool:
        return _fits(identifier, self.deny)


def _fits(identifier: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(_current(identifier), _current(pattern)) for pattern in patterns)


def _current(identifier: str) -> str:
    """The name of today, in small letters."""
    name = identifier.casefold()
    if _OF_GNU.fullmatch(name):
        return f"{name}-only"
    return f"{name[:-1]}-or-later" if _OF_GNU.fullmatch(name[:-1]) and name.endswith("+") else name


class _Reader:
    """Reads an expression by recursive descent: OR binds least, then AND, then WITH."""

    def __init__(self, tokens: list[str], permits: Callable[[str], bool]) -> None:
        self._tokens, self._at, self._nested, self._permits = tokens, 0, 0, permits

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
        if token == "(" and self._nested < _MOST_NESTED:
            self._nested += 1
            verdict = self._either()
            self._nested -= 1
            closed = self._next() == ")"
            self._at += 1
            return verdict if closed else None
        if token in ("", "(", ")", *_OPERATORS):
            return None
        if self._next() == "WITH":
            self._at += 1
            exception = self._next()
            self._at += 1
            if exception in ("", "(", ")", *_OPERATORS):
                return None
        return self._permits(token)

    def _next(self) -> str:
        """The token to read, operators in large letters; "" at the end."""
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        return "OR" if token == "/" else token.upper() if token.upper() in _OPERATORS else token


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
