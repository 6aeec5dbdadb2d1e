"""The table of personal data: what each kind looks like and when a candidate is one. Kinds have Presidio's names.

A row is a cheap test whether a text can hold the kind at all, a pattern, and a check of each candidate; precision comes
from the checks. Telephone numbers are in `phones`, keys and passwords in `secrets`. Knows no replacement.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lmworks.data.privacy.checks import (
    IBAN_LENGTHS,
    PROVINCES,
    is_card,
    is_cn_id,
    is_iban,
    is_public_ip,
    is_ssn,
    passes_luhn,
)


@dataclass(frozen=True)
class Finding:
    """Where something personal or secret stands."""

    kind: str
    start: int
    end: int


class Search(Protocol):
    """Finds one kind in a text."""

    def __call__(self, text: str, /) -> Iterable[tuple[int, int]]:
        """`(start, end)` of everything found, in order."""
        ...


@dataclass(frozen=True)
class Detector:
    """One row: a kind and how it is found."""

    kind: str
    search: Search
    secret: bool = False
    """Keys and passwords rather than what belongs to a person."""


def always(_: re.Match[str]) -> bool:
    """Needs no check."""
    return True


@dataclass(frozen=True)
class Pattern:
    """A search by regular expression: the group `x` where there is one, else the whole match."""

    regex: re.Pattern[str]
    check: Callable[[re.Match[str]], bool] = always
    needs: tuple[str, ...] = ()
    """A text without any of these, in whatever case, cannot hold the kind."""

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """See `Search`."""
        if self.needs:
            lowered = text.lower()
            if not any(needed in lowered for needed in self.needs):
                return
        group = "x" if "x" in self.regex.groupindex else 0
        for match in self.regex.finditer(text):
            if self.check(match):
                yield match.span(group)


def _bare(match: re.Match[str]) -> str:
    """The candidate without separators."""
    return re.sub(r"[ \-\u2010-\u2013.]", "", match["x"] if "x" in match.re.groupindex else match[0])


def _before(match: re.Match[str], characters: int = 24) -> str:
    """What stands just before a match."""
    return match.string[max(match.start() - characters, 0) : match.start()]


_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release[ds]?|rev|revision|build|firmware|section|sect?|chapter|§|clause|figure|table|appendix"
    r"|(?:up|down)grad\w+ (?:from|to))"
    r"[.:=\s]*|版本(?:号)?[:：\s]*|第|[vV§]|==|[><~^]=?\s*|[A-Za-z_]-)$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE = re.compile(
    r"\b(?:ip|addr|address|host|server|ping|from|client|peer|remote|src|dst|gateway|dns)\b|://|@|地址", re.IGNORECASE
)
_FRACTION_BEFORE = re.compile(r"(?:^|[\s,A-Za-z-])\d*\.\d+[ ,]$")
"""Among fractions, as the paths of drawings are."""
_ADDRESS_AFTER = re.compile(r":\d{2,5}\b|/\d{1,2}\b| - \S+ \[")
"""A port, the bits of a network, or what follows in the logs of web servers."""
_MAC_BEFORE = re.compile(r"\bmac\b|ether|hwaddr|bssid|物理地址", re.IGNORECASE)
_CARD_BEFORE = re.compile(r"\bcards?\b|\bcc\b|\bvisa\b|mastercard|\bamex\b|信用卡|银行卡|卡号", re.IGNORECASE)


def _is_card(match: re.Match[str]) -> bool:
    """Of a known issuer, or, after a word such as "card", any number that passes the check."""
    digits = _bare(match)
    return is_card(digits) or (passes_luhn(digits) and bool(_CARD_BEFORE.search(_before(match, 30))))


def _is_ipv4(match: re.Match[str]) -> bool:
    """A public address; not a version or the number of a section, which have small parts and follow such words."""
    octets = match[0].split(".")
    if any(octet != str(int(octet)) for octet in octets) or not is_public_ip(match[0]):
        return False
    if _VERSION_BEFORE.search(_before(match)) or _FRACTION_BEFORE.search(_before(match)):
        return False
    parts = [int(octet) for octet in octets]
    numbered = max(parts) <= 30 or sum(part < 10 for part in parts) >= 2
    return not numbered or bool(
        _ADDRESS_BEFORE.search(_before(match)) or _ADDRESS_AFTER.match(match.string, match.end())
    )


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Account numbers, alone or in groups of four, as long as their country has them: a word may stand behind."""
    for match in _IBAN.finditer(text):
        places = [place for place in range(*match.span()) if text[place] != " "]
        length = IBAN_LENGTHS.get(match[0][:2].upper(), len(places) + 1)
        if length > len(places):
            continue
        end = places[length - 1] + 1
        if not text[end : end + 1].isalnum() and is_iban(text[match.start() : end].replace(" ", "")):
            yield match.start(), end


def _is_cn_id(match: re.Match[str]) -> bool:
    return is_cn_id(match[0])


def _is_ssn(match: re.Match[str]) -> bool:
    return is_ssn(_bare(match))


def _is_mac(match: re.Match[str]) -> bool:
    """Not all one digit, as masks and broadcasts are, nor six short words, nor six numbers unless a word says so."""
    digits = _bare(match).replace(":", "").lower()
    if digits.isdigit() and not _MAC_BEFORE.search(_before(match)):
        return False
    return len(set(digits)) > 1 and any(c.isdigit() for c in digits)


def _is_ipv6(match: re.Match[str]) -> bool:
    address = match[0]
    enough = address.count(":") >= 4 and len(address) >= 9 and any(character.isdigit() for character in address)
    return enough and is_public_ip(address)


def _is_email(match: re.Match[str]) -> bool:
    """Not the name of a file, nor where a repository lies, as in `git@host:group/name`."""
    domain = match[0].rpartition("@")[2]
    if _PATH_AFTER.match(match.string, match.end()):
        return False
    return domain.rpartition(".")[2].lower() not in _FILE_ENDINGS and ".." not in match[0]


_PATH_AFTER = re.compile(r":[\w~.-]*/")
_LETTERS = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
"""Of the part before the @: Latin, Greek and Cyrillic; Chinese and the like may be the sentence before it."""
_FILE_ENDINGS = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "html", "py", "sh", "md", "txt", "service")
)

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[A-Za-z0-9]{11,30}|(?: [A-Za-z0-9]{4}){2,7}(?: [A-Za-z0-9]{1,3})?)", re.ASCII
)

DETECTORS: tuple[Detector, ...] = (
    Detector("IBAN_CODE", _ibans),
    Detector("CN_ID", Pattern(
        re.compile(r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}"
                   r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])", re.ASCII),
        _is_cn_id)),
    Detector("CREDIT_CARD", Pattern(
        re.compile(r"(?<![\w.,/+-])\d(?:[ -]?\d){11,18}(?![\w/-]|[.,]\d)", re.ASCII),
        _is_card)),
    Detector("US_SSN", Pattern(
        re.compile(r"(?<![\w.+/-])\d{3}(?P<s>[- ])\d{2}(?P=s)\d{4}(?![\w/-]|[.,]\d)", re.ASCII),
        _is_ssn)),
    Detector("US_SSN", Pattern(
        re.compile(r"(?i:\bssn\b|social security)"
                   r"(?i:\s*(?:number|no|is|[#.:])){0,3}\s*(?P<x>\d{9})(?![\w/-]|[.,]\d)", re.ASCII),
        _is_ssn, ("ssn", "social security"))),
    Detector("MAC_ADDRESS", Pattern(
        re.compile(r"(?<![0-9A-Fa-f:-])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])"
                   r"|(?<![0-9A-Fa-f:-])(?:[0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])", re.ASCII),
        _is_mac)),
    Detector("IP_ADDRESS", Pattern(
        re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)", re.ASCII), _is_ipv4, (".",))),
    Detector("IP_ADDRESS", Pattern(
        re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7}(?![\w:]|\.\d)", re.ASCII),
        _is_ipv6, (":",))),
    Detector("EMAIL_ADDRESS", Pattern(
        re.compile(rf"(?<![{_LETTERS}._%+\-])[{_LETTERS}](?:[{_LETTERS}._%+'’\-]{{0,62}}[{_LETTERS}_+\-])?@"
                   r"(?:[^\W_](?:[^\W_]|-){0,62}\.){1,6}"
                   r"(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,30}|中国|中國|公司|网络|香港|台湾|台灣|한국|рф|рус|укр|бел)"
                   r"(?![A-Za-z0-9@]|-[A-Za-z0-9])"),
        _is_email, ("@",))),
    Detector("PASSPORT", Pattern(
        re.compile(r"(?i:\bpassport|护照)(?i:\s*(?:number|no|num|号码?|is|[#.:：])){0,4}\s*"
                   r"(?P<x>[A-Za-z]{1,2}\d{6,8}|\d{9})(?![\w-])", re.ASCII),
        needs=("passport", "护照"))),
    Detector("CN_PLATE", Pattern(
        re.compile(rf"[{PROVINCES}][A-HJ-NP-Z][·•・. -]?"
                   r"(?=[A-HJ-NP-Z0-9]*\d)[A-HJ-NP-Z0-9]{4,5}[A-HJ-NP-Z0-9挂学警港澳](?![A-Za-z0-9])", re.ASCII))),
)  # fmt: skip
"""From the surest to the least sure: where two overlap, the earlier row wins."""


def search(text: str, detectors: Sequence[Detector]) -> list[Finding]:
    """Everything found, in the order of the text, without overlaps: earlier detectors win, then longer finds."""
    found = [
        (rank, start - end, start, end, detector.kind)
        for rank, detector in enumerate(detectors)
        for start, end in detector.search(text)
    ]
    taken: list[Finding] = []  # in the order of the text
    for _, _, start, end, kind in sorted(found):
        place = bisect_left(taken, start, key=lambda finding: finding.start)
        before_ends = not place or taken[place - 1].end <= start
        if before_ends and (place == len(taken) or end <= taken[place].start):
            taken.insert(place, Finding(kind, start, end))
    return taken
