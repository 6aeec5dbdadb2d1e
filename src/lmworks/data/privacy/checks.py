"""Whether digits and letters that look like an identifier can be one: checksums, issuers, dates, ranges.

Pure functions of the identifier without its separators. Knows no text.
"""

from __future__ import annotations

import datetime
import ipaddress
import re

_CARDS: tuple[tuple[int, int, frozenset[int]], ...] = tuple(
    (low, high, frozenset(lengths))
    for low, high, lengths in (
        (4, 4, (13, 16, 19)),  # Visa
        (51, 55, (16,)), (2221, 2720, (16,)),  # Mastercard
        (34, 34, (15,)), (37, 37, (15,)),  # American Express
        (300, 305, (14,)), (36, 36, (14,)), (38, 39, (14,)),  # Diners Club
        (6011, 6011, (16, 19)), (644, 659, (16, 19)),  # Discover
        (3528, 3589, (16, 17, 18, 19)), (2131, 2131, (15,)), (1800, 1800, (15,)),  # JCB
        (62, 62, (16, 17, 18, 19)),  # UnionPay
        (50, 50, range(12, 20)), (56, 58, range(12, 20)), (6304, 6304, range(12, 20)),  # Maestro
        (6759, 6759, range(12, 20)), (6761, 6763, range(12, 20)),
        (2200, 2204, (16, 17, 18, 19)),  # Mir
    )
)  # fmt: skip
"""First and last leading digits of an issuer's range (ISO/IEC 7812) and the lengths of its numbers."""

_IBAN_REGISTRY = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18
FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20
LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31
SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_REGISTRY.split()}
"""Characters of an IBAN by country, from the SWIFT registry."""

PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
"""First characters of Chinese number plates."""
_CN_PROVINCES = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]")


def luhn_digit(digits: str) -> str:
    """The digit that makes `digits + it` pass Luhn's check (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def is_card(digits: str) -> bool:
    """A number of a card issuer's range and length that passes Luhn's check, and not one digit repeated."""
    issued = any(
        low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in _CARDS
    )
    return issued and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """The check digit, in a number that is not one digit repeated."""
    return luhn_digit(digits[:-1]) == digits[-1] and len(set(digits)) > 1


def iban_digits(country: str, account: str) -> str:
    """The two check digits (ISO 13616, modulo 97)."""
    return f"{98 - _mod97(account + country + '00'):02}"


def is_iban(iban: str) -> bool:
    """Length of its country and check digits."""
    iban = iban.upper()
    return IBAN_LENGTHS.get(iban[:2]) == len(iban) and _mod97(iban[4:] + iban[:4]) == 1


def _mod97(text: str) -> int:
    return int("".join(str(int(character, 36)) for character in text)) % 97


def cn_id_digit(digits: str) -> str:
    """The last character of a Chinese resident number, `0` to `9` or `X` (GB 11643, ISO 7064 MOD 11-2)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(digits[:17]))
    return "10X98765432"[total % 11]


def is_cn_id(number: str) -> bool:
    """Province, date of birth and check character of an 18-digit Chinese resident number."""
    if not _CN_PROVINCES.match(number) or cn_id_digit(number) != number[17].upper():
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return 1900 <= born.year <= 2099


def is_ssn(digits: str) -> bool:
    """A US social security number that could be issued: no area 000, 666 or 9xx, no group 00, no serial 0000."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def is_public_ip(address: str) -> bool:
    """An address of the public internet, v4 or v6: private, loopback and documentation ranges name nobody."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
