"""Telephone numbers of all countries, by the numbering plans of the library `phonenumbers`.

A candidate counts when it begins with `+` and fits its country's plan, when a word such as "call" stands beside it,
when it is a Chinese mobile number, or when it is written in groups and is valid in one of the given regions; bare
digits alone never do. Knows no other kind of personal data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lmworks.core.errors import ConfigError, require

REGIONS = ("US", "CN", "GB", "DE", "FR", "IN", "JP", "ES", "IT", "BR")
"""Where national numbers are looked up unless said otherwise."""
_CANDIDATE = re.compile(
    r"(?<![\w./$€£¥%#=@_+-])(?<!\d[ ),:])(?:\+ ?\d|00\d|\(\+?\d|\d)(?:[ .\-/\u2010-\u2013]{0,2}[()]?[ .\-]?\d){5,16}"
    r"(?:\s?(?:x|ext\.?|#)\s?\d{1,6})?(?![\w%元]|[.,:/-]\d|-(?![A-Z][a-z]{2})\w|@)",
    re.ASCII,
)
_SAYS_PHONE = re.compile(
    r"(?:\b(?:tele)?(?:phone|fon)s?|\btel|\bmobile|\bcell|\bcall(?:ed|ing)?|\bdial|\bfax|\bwhatsapp|\btext|\bsms|\bhotline"
    r"|\breach(?:ed)?|\banswer(?:ing|ed)? at|\bcontact|\bring|\bhandy|\b(?:phone|contact|mobile) number|"
    r"电话|手机|联系方式|传真|微信|座机|致电|拨打)",
    re.IGNORECASE,
)
_CN_MOBILE = re.compile(r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}")
_OTHER_NUMBER = re.compile(
    r"(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12]\d|3[01])\b"  # a date
    r"|(?:0?[1-9]|[12]\d|3[01])[-./ ](?:0?[1-9]|[12]\d|3[01])[-./ ](?:19|20)\d\d\b"
    r"|(?:1[5-9]|20)\d\d ?[-–/] ?(?:1[5-9]|20)\d\d\b"  # years
    r"|\d+ ?\((?:1[5-9]|20)\d\d\)"  # volume and year of a journal
    r"|\+?\d+\.\d+$|(?:\d+\.){3}\d+$|\d{3}-\d\d-\d{4}$"  # a fraction, an address, a social security number
)
_SAYS_OTHER = re.compile(r"(?:ISBN|ISSN|DOI|arXiv|PMID|OCLC)[-:：\s\d]{0,8}$", re.IGNORECASE)
_NEARBY = 40
"""Characters before a candidate, and half as many after it, in which a telling word counts."""


@dataclass(frozen=True)
class PhoneSearch:
    """See the file's first lines.

    Args:
        regions: two-letter countries whose national numbers are found without a `+`.
    """

    regions: Sequence[str] = REGIONS

    def __post_init__(self) -> None:
        require("phonenumbers", "pii")
        import phonenumbers

        for region in self.regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ConfigError(
                    f"region {region!r} has no numbering plan", "Give two capital letters, such as US, CN or GB"
                )

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """`(start, end)` of each number."""
        for match in _CANDIDATE.finditer(text):
            if self._is_number(match):
                yield match.span()

    def _is_number(self, match: re.Match[str]) -> bool:
        written = match[0]
        digits = re.sub(r"\D", "", re.split(r"\s?(?:x|ext|#)", written)[0])
        if not 7 <= len(digits) <= 15 or len(set(digits)) < 3 or _OTHER_NUMBER.match(written):
            return False
        if _SAYS_OTHER.search(match.string, max(match.start() - 16, 0), match.start()):
            return False
        if written.startswith(("+", "00", "(+")):
            return _is_possible(re.sub(r"^00", "+", written))
        if _CN_MOBILE.fullmatch(written):
            return True
        text, (start, end) = match.string, match.span()
        if _SAYS_PHONE.search(text, max(start - _NEARBY, 0), start) or _SAYS_PHONE.search(
            text, end, end + _NEARBY // 2
        ):
            return True
        groups = re.findall(r"\d+", written)
        return len(groups) >= 3 and "/" not in written and any(_is_valid(written, region) for region in self.regions)


@lru_cache(maxsize=4096)
def _is_possible(written: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(written, None))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=4096)
def _is_valid(written: str, region: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(written, region))
    except phonenumbers.NumberParseException:
        return False
