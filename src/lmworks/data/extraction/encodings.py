"""From bytes to text in whatever encoding they are, or the reason why they are none. Knows no format."""

from __future__ import annotations

import codecs
import re

from lmworks.data.extraction.charsets import likeliest
from lmworks.data.extraction.result import UnreadableError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16, so it is asked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = bytes(set(range(32)) - {9, 10, 12, 13, 27})
_MAX_CONTROL_SHARE = 0.01
_BEYOND = re.compile("[^\x00-\x7f\ufffd]")
_SHIFTS = {
    "iso2022_jp_2": re.compile(rb"\x1b\$(?:[@AB]|\([CD])"), "iso2022_kr": re.compile(rb"\x1b\$\)C"),
    "hz": None, "utf-7": None,
}  # fmt: skip
"""Encodings in seven bits and what they begin to shift with; where code says the same, they have to be declared."""
_WIDER = {
    "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "big5": "big5hkscs", "shift-jis": "cp932",
    "x-sjis": "cp932", "sjis": "cp932", "euc-kr": "cp949", "ks-c-5601-1987": "cp949", "iso-8859-1": "cp1252",
    "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252", "iso-8859-9": "cp1254",
    "tis-620": "cp874", "iso-8859-11": "cp874", "x-mac-roman": "mac_roman", "x-mac-cyrillic": "mac_cyrillic",
}  # fmt: skip
"""What browsers read in place of a declared encoding: the larger code page of the same bytes."""
_NOTATIONS = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"))
"""What Python calls encodings too."""


def decode(data: bytes) -> str:
    """The text of a file: UTF-8, what a mark or shifts at its beginning tell, or else its likeliest encoding.

    Raises:
        UnreadableError: `binary`, `encoding` (damaged UTF-8, or an encoding that cannot be told).
    """
    return decode_named(data)[0]


def decode_named(data: bytes, declared: str = "") -> tuple[str, str]:
    """The text and Python's name of its encoding.

    Args:
        data: the bytes.
        declared: what a header says they are; believed where they are no UTF-8, unless what it makes of them is no
            writing and what another encoding makes of them is.

    Raises:
        UnreadableError: as `decode`.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise UnreadableError("encoding", f"not {encoding} after its mark, at byte {error.start}") from None
    declared = _codec(declared)
    if data.isascii() and (found := _shifted(data, declared)):
        return found
    control = len(data) - len(data.translate(None, _CONTROL))
    if b"\0" in data or control > _MAX_CONTROL_SHARE * len(data):
        if found := likeliest(data, wide_only=True):
            return found
        raise UnreadableError("binary", f"{control} control bytes in {len(data)}, so it is no text")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        place = f"invalid UTF-8 at byte {error.start}"
    lenient = data.decode("utf-8", "replace")
    if len(_BEYOND.findall(lenient)) > lenient.count("\ufffd"):
        raise UnreadableError("encoding", f"{place}, though the rest is UTF-8: the file is damaged")
    if found := likeliest(data, declared):
        return found
    raise UnreadableError("encoding", f"{place}, and no other encoding makes it a text")


def _shifted(data: bytes, declared: str) -> tuple[str, str] | None:
    """Text in seven bits with shifts between character sets, as in old mail."""
    marked = (encoding for encoding, mark in _SHIFTS.items() if declared == encoding or (mark and mark.search(data)))
    for encoding in marked:
        try:
            text = data.decode(encoding)
        except UnicodeError:
            continue
        if not text.isascii():
            return text, encoding
    return None


def _codec(declared: str) -> str:
    """Python's name of a declared encoding, in the wider code page that the wild means; empty for an unknown one."""
    name = declared.strip().lower()
    try:
        codec = codecs.lookup(_WIDER.get(name.replace("_", "-"), name))
    except (LookupError, ValueError):  # NUL in the name is a ValueError
        return ""
    return codec.name if codec._is_text_encoding and codec.name not in _NOTATIONS else ""
