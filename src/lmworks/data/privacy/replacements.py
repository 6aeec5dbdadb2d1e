"""What is put where something personal stood. Depends on the find alone: not on order, place or who works.

*Token*: `<EMAIL_ADDRESS>`. *Surrogate*: another value of the same form that passes the same checks, chosen by HMAC
under a key, so that one value becomes one surrogate wherever it stands. *Label*: `<EMAIL_ADDRESS:4f1c…>` by the same
HMAC, which a vault can turn back. Knows no detector's pattern.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import stat
import string
from collections.abc import Callable, Iterator
from pathlib import Path

from lmworks.core.errors import DataError
from lmworks.core.progress import say
from lmworks.data.cleaning.text_measures import CJK
from lmworks.data.privacy.checks import PROVINCES, cn_id_digit, iban_digits, luhn_digit

MIN_KEY_BYTES = 16
_HAN = "安宁和平春华秋实江河山川松柏竹梅文武德仁义礼智信"
LABEL = re.compile(r"<([A-Z_]+):([0-9a-f]{16})>")


def read_key(file: Path) -> bytes:
    """The secret key in a file: any bytes, at least 16. Says so when others than its owner may read it.

    Raises:
        DataError: it cannot be read or is too short.
    """
    try:
        key = file.read_bytes()
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            say(f"others than its owner may read the key {file}: chmod 600 {file}")
    except OSError as error:
        raise DataError(f"cannot read the key {file}: {error}", _MAKE_ONE.format(file)) from None
    if len(key) < MIN_KEY_BYTES:
        raise DataError(f"the key {file} has {len(key)} bytes, fewer than {MIN_KEY_BYTES}", _MAKE_ONE.format(file))
    return key


_MAKE_ONE = "Make one: head -c 32 /dev/urandom > {0} && chmod 600 {0}"


def token(kind: str) -> str:
    """The class alone."""
    return f"<{kind}>"


def label(key: bytes, kind: str, value: str) -> str:
    """A name for a value that tells nothing without the key."""
    return f"<{kind}:{_mac(key, kind, value)[:8].hex()}>"


def surrogate(key: bytes, kind: str, value: str) -> str:
    """Another value of the same kind, length and punctuation.

    Addresses come from ranges kept for documentation or private use, so nobody has them; cards keep their issuer and
    telephone numbers what precedes the last seven digits.
    """
    make = _SURROGATES.get(kind, _same_form)
    return make(value, _Stream(_mac(key, kind, value)))


def canonical(kind: str, value: str) -> str:
    """One spelling of a value, so that `4111 1111` and `41111111` are the same."""
    if kind in ("PERSON", "EMAIL_ADDRESS"):
        return value.casefold() if kind == "EMAIL_ADDRESS" else value
    if kind == "IP_ADDRESS":
        return value.lower()
    return re.sub(r"[\W_]", "", value).upper()


def _mac(key: bytes, kind: str, value: str) -> bytes:
    return hmac.digest(key, f"{kind}\0{canonical(kind, value)}".encode("utf-8", "surrogatepass"), "sha256")


class _Stream:
    """Uniform choices, fixed by a seed."""

    def __init__(self, seed: bytes) -> None:
        self._bytes = self._blocks(seed)

    @staticmethod
    def _blocks(seed: bytes) -> Iterator[int]:
        block = seed
        while True:
            block = hashlib.sha256(block).digest()
            yield from block

    def below(self, bound: int) -> int:
        """A number of 0 … bound-1; the bias of 32 bits is far below anything that shows."""
        return int.from_bytes(bytes(next(self._bytes) for _ in range(4)), "big") % bound

    def of(self, choices: str) -> str:
        """One character."""
        return choices[self.below(len(choices))]


def _same_form(value: str, stream: _Stream) -> str:
    """Digits for digits, letters for letters, all else as it is."""
    return "".join(_like(character, stream) for character in value)


def _like(character: str, stream: _Stream) -> str:
    if character.isdigit():
        return stream.of(string.digits)
    if character in PROVINCES:
        return stream.of(PROVINCES)
    if CJK.match(character):
        return stream.of(_HAN)
    if character.isalpha():
        return stream.of(string.ascii_uppercase if character.isupper() else string.ascii_lowercase)
    return character


def _into(value: str, characters: str) -> str:
    """The characters in the layout of `value`, whose separators stay."""
    given = iter(characters)
    return "".join(next(given) if character.isalnum() else character for character in value)


def _email(value: str, stream: _Stream) -> str:
    """At one of the domains that RFC 2606 keeps for examples."""
    return f"{_same_form(value.rpartition('@')[0], stream)}@example.{('com', 'net', 'org')[stream.below(3)]}"


def _phone(value: str, stream: _Stream) -> str:
    places = [place for place, character in enumerate(value) if character.isdigit()][-7:]
    return "".join(stream.of(string.digits) if place in places else c for place, c in enumerate(value))


def _card(value: str, stream: _Stream) -> str:
    digits = re.sub(r"\D", "", value)
    body = digits[:6] + "".join(stream.of(string.digits) for _ in digits[6:-1])
    return _into(value, body + luhn_digit(body))


def _iban(value: str, stream: _Stream) -> str:
    plain = re.sub(r"\W", "", value).upper()
    account = plain[4:8] + "".join(_like(character, stream) for character in plain[8:])
    return _into(value, plain[:2] + iban_digits(plain[:2], account) + account)


def _cn_id(value: str, stream: _Stream) -> str:
    born = datetime.date(1950, 1, 1) + datetime.timedelta(days=stream.below(18_000))
    body = f"{value[:2]}0000{born:%Y%m%d}{stream.below(1000):03}"
    return body + cn_id_digit(body)


def _ssn(value: str, stream: _Stream) -> str:
    return _into(value, f"9{stream.below(100):02}{1 + stream.below(99):02}{1 + stream.below(9999):04}")


def _ip(value: str, stream: _Stream) -> str:
    if ":" in value:
        return "2001:db8:" + ":".join(f"{stream.below(1 << 16):x}" for _ in range(6))
    return "10." + ".".join(str(stream.below(256)) for _ in range(3))


def _mac_address(value: str, stream: _Stream) -> str:
    digits = "02" + "".join(stream.of("0123456789abcdef") for _ in range(10))
    return _into(value, digits)


_SURROGATES: dict[str, Callable[[str, _Stream], str]] = {
    "EMAIL_ADDRESS": _email,
    "PHONE_NUMBER": _phone,
    "CREDIT_CARD": _card,
    "IBAN_CODE": _iban,
    "CN_ID": _cn_id,
    "US_SSN": _ssn,
    "IP_ADDRESS": _ip,
    "MAC_ADDRESS": _mac_address,
}


def masked(value: str) -> str:
    """As a report may show it: the first character and the punctuation."""
    return value[:1] + "".join("•" if character.isalnum() else character for character in value[1:])
