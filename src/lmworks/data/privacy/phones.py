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
    r"(?<![\w./$€£¥%#=@_+-])(?:(?<!\d[ ),:])|(?<=,)(?=\+))"
    r"(?:\+ ?\d|00\d|\(\+?\d|\d)(?:[ .\-/\u2010-\u2013]{0,2}[()]?[ .\-]?\d){5,16}"
    r"(?:\s?(?:x|ext\.?|#)\s?\d{1,6})?(?![\w%元]|[.:/-]\d|,\d{3}(?!\d)|-(?![A-Z][a-z]{2})\w|@)",
    re.ASCII,
)
_SAYS_PHONE = re.compile(
    r"(?:\b(?:t[eé]l[eé])?(?:ph?one|fon)s?|\bt[eé]l\b|\bmobile?|\bcell\b|\bcall(?:ing)?\b|\bcalled at|\bdial|\bfax"
    r"|\bwhatsapp|\btext\b|\bsms|\bhotline|\breach(?:ed)?\b|\banswer(?:ing|ed)? at|\bcontact|\bring\b|\bhandy"
    r"|\btlf\b|\bpuh\b|☎|☏|📞|📱|\bph\b|\bmob\b|\bgsm\b|\brufnummer|\banruf|\bappele[rz]|\bm[oó]vil|\bcelular"
    r"|\bllam[ae]|\bcellulare|\bchiama|\bligue|\bbellen|\bkomórk"
    r"|телефон|\bтел\b|\bмоб|звони|τηλ|טלפון|هاتف|جوال|फ़ोन|मोबाइल|điện thoại|โทร"
    r"|[电電][话話]|手[机機]|[联聯][系絡络]方式|[联聯]絡|传真|傳真|微信|座机|致[电電]|[拨撥]打|携帯|전화|휴대폰|연락처|팩스)",
    re.IGNORECASE,
)
_SAYS_MUCH_ELSE = re.compile(r"mob|cell$|call|dial|text|sms|reach|answer|contact|ring|handy", re.IGNORECASE)
"""Telling words with other meanings: bare digits must follow them at once, as in "call me at"."""
_AT_ONCE = re.compile(
    r"(?:[\W_]*\b(?:number|no|nr|num|is|are|at|me|us|him|her|them|on|to|office|work|home|mobile|cell|phone)\b)*"
    r"[^A-Za-z]*",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(r"(?:^|[\s|,;·(])[TPMF][.:] ?$")
"""The letters under which numbers stand in signatures."""
_NAMES_ANOTHER = re.compile(r"[\"'\w]*\s*[.:：=>]?\s*[\"']?\s*[+(\d]")
"""What follows a telling word that belongs to the next number."""
_CN_MOBILE = re.compile(r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}")
_OTHER_NUMBER = re.compile(
    r"(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ](?:0?[1-9]|[12]\d|3[01])\b"  # a date
    r"|(?:0?[1-9]|[12]\d|3[01])[-./ ](?:0?[1-9]|[12]\d|3[01])[-./ ](?:19|20)\d\d\b"
    r"|(?:\d+ ?\()?(?:1\d|20)\d\d ?(?:--?|[–—/]) ?(?:1\d|20)\d\d\b"  # years
    r"|(?:\d+ ?\()?(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])\b"  # a day after a number
    r"|[\d-]+ ?\((?:1\d|20)\d\d\b"  # volume and year of a journal
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])$"
    r"|\d+\.\d{5,}(?![.\d])"  # a coordinate
    r"|(?:\d*\.\d+ +)+\d*\.\d+$"  # fractions
    r"|(?:\+ ?)?\d+\.\d+$|(?:\d+\.){3}\d+$|\d{3}-\d\d-\d{4}$"  # a fraction, an address, a social security number
)
_THOUSANDS = re.compile(r"[1-9]\d?(?: \d{3}){2,}")
_SAYS_OTHER = re.compile(
    r"(?:\b(?:ISBN|ISSN|RFC|DOI|arXiv|PMID|OCLC)[-:：\s\d]{0,8}"
    r"|\bpp?\. ?|\b(?:part|sku|item|model|lot|batch|article|catalog(?:ue)?|pages?|vol|p/n)"
    r"(?:[ _]?(?:number|no|nr)\b)?[\"'.:：=#\s]{0,5}"
    r"|\b(?:order|invoice|tracking|parcel|ticket|transaction|account|serial|charge|reference|ref|id|section|code)"
    r"(?:[ _]?(?:number|no|nr|id|ann)\b)?[\"'.:：=#\s]{0,5}"
    r"|(?:[订訂]单|單號|单号|编号|編號|流水号|序列号)[码碼]?[\"':：=#\s]{0,4})$",
    re.IGNORECASE,
)
_NEARBY = 40
"""Characters before a candidate in its paragraph, and half as many after it in its line, where such a word counts."""


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
        if not 7 <= len(digits) <= 15 or len(set(digits)) < 3 or _OTHER_NUMBER.match(written.lstrip("(")):
            return False
        if _SAYS_OTHER.search(match.string, max(match.start() - 32, 0), match.start()):
            return False
        if written.startswith(("+", "00", "(+")) and _is_possible(re.sub(r"^00", "+", written)):
            return True
        if _CN_MOBILE.fullmatch(written):
            return True
        text, (start, end) = match.string, match.span()
        before = text[max(start - _NEARBY, 0) : start].rpartition("\n\n")[2]
        after = text[end : end + _NEARBY // 2].partition("\n")[0]
        groups = re.findall(r"\d+", written)
        if _SIGNATURE.search(before) or any(
            len(groups) > 1 or not _SAYS_MUCH_ELSE.match(said[0]) or _AT_ONCE.fullmatch(before, said.end())
            for said in _SAYS_PHONE.finditer(before)
        ):
            return True
        if (said := _SAYS_PHONE.search(after)) and not _NAMES_ANOTHER.match(text, end + said.end()):
            return True
        bytes_in_a_row = len(groups) != 5 and all(len(group) == 2 for group in groups)  # five are a French number
        if (
            bytes_in_a_row
            or _THOUSANDS.fullmatch(written)
            or len(groups) < 3
            or min(map(len, groups[1:])) < 2
            or "/" in written
        ):
            return False
        return any(_is_valid(written, region) for region in self.regions)


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
