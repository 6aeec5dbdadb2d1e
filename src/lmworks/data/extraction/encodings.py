"""From bytes to text in whatever encoding they are, or the reason why they are none. Knows no format."""

from __future__ import annotations

import codecs
import re

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
_MAX_CHAOS = 0.1
"""charset-normalizer's measure of how messy a decoding looks; above it the guess is not trusted."""
_SAMPLE = 1 << 17
"""Bytes that a guess is made from; all of them must fit it."""
_CHINESE_JAPANESE = ("gb18030", "big5hkscs", "cp932", "euc_jp", "euc_kr")
_COMMON_HAN = frozenset(
    "的一是不了在人有我他这這個个们們中来來上大為为和国國地到以说說時时要就出会會可也你对對生能而子那得于着下自之年"
)
_HANGUL = re.compile("[\uac00-\ud7a3]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_HAN = re.compile("[\u4e00-\u9fff]")
_ODD = re.compile("[\ue000-\uf8ff\uff61-\uff9f\u0080-\u009f\ufffd]")
"""Private use, half-width kana and C1 controls: what a wrong East Asian decoding is full of."""


def decode(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with their marks, or what the bytes leave no doubt of.

    Raises:
        UnreadableError: `binary`, `encoding` (damaged UTF-8, or an encoding that cannot be told).
    """
    return decode_named(data)[0]


def decode_named(data: bytes, declared: str = "") -> tuple[str, str]:
    """The text and Python's name of its encoding.

    Args:
        data: the bytes.
        declared: what a header says they are; believed where they are no UTF-8 and decode under it.

    Raises:
        UnreadableError: as `decode`.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise UnreadableError("encoding", f"not {encoding} after its mark, at byte {error.start}") from None
    if wide := _wide(data):
        return wide
    control = len(data) - len(data.translate(None, _CONTROL))
    if b"\0" in data or control > _MAX_CONTROL_SHARE * len(data):
        raise UnreadableError("binary", f"{control} control bytes in {len(data)}, so it is no text")
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        return _declared(data, declared) or _guess(data, error)


def _wide(data: bytes) -> tuple[str, str] | None:
    """UTF-16 without its mark: only where every other byte of much plain text is zero."""
    if len(data) < 8 or len(data) % 2:
        return None
    sample = data[: _SAMPLE & ~1]
    for encoding, zeros, others in (("utf-16-le", sample[1::2], sample[::2]), ("utf-16-be", sample[::2], sample[1::2])):
        if zeros.count(0) > 0.7 * len(zeros) and others.count(0) == 0:
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                return None
            return (text, encoding) if not any(ord(c) < 32 and c not in "\t\n\f\r" for c in text[:1000]) else None
    return None


def _declared(data: bytes, declared: str) -> tuple[str, str] | None:
    # What is declared ISO-8859-1 or GB2312 is, in the wild, written in the larger code page of the same bytes.
    wider = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "shift-jis": "cp932",
             "iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252"}  # fmt: skip
    try:
        encoding = codecs.lookup(wider.get(declared.strip().lower(), declared.strip())).name
        return data.decode(encoding), encoding
    except (LookupError, ValueError):  # unknown, or not what the bytes are; NUL in the name is a ValueError
        return None


def _guess(data: bytes, error: UnicodeDecodeError) -> tuple[str, str]:
    """Decode bytes that are not UTF-8, unless most of their non-ASCII part is: then they are damaged UTF-8."""
    place = f"invalid UTF-8 at byte {error.start}"
    lenient = data.decode("utf-8", errors="replace")
    broken = lenient.count("\ufffd")
    if len(re.findall(r"[^\x00-\x7f\ufffd]", lenient)) > broken:
        raise UnreadableError("encoding", f"{place}, though the rest is UTF-8: the file is damaged")
    if found := _east_asian(data):
        return found
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        raise UnreadableError("encoding", f"{place}; install lmworks[data] to have encodings recognized") from None
    begin = max(0, min(error.start, len(data) - 1) - _SAMPLE // 2)
    best = from_bytes(data[begin : begin + _SAMPLE]).best()
    if best is None or best.chaos > _MAX_CHAOS:
        raise UnreadableError("encoding", f"{place}, and no other encoding fits")
    try:
        return data.decode(best.encoding), best.encoding
    except UnicodeDecodeError:
        raise UnreadableError("encoding", f"{place}; a part is {best.encoding} and the whole is not") from None


def _east_asian(data: bytes) -> tuple[str, str] | None:
    """The East Asian encoding under which the text looks most like one; None where none clearly does.

    The byte ranges of these encodings overlap, so that most texts decode under several; the right one alone gives
    the characters that running text is made of.
    """
    best: tuple[float, str, str] | None = None
    for encoding in _CHINESE_JAPANESE:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        sample = text[: 1 << 16]
        foreign = sum(c > "\x7f" for c in sample)
        han, kana, hangul = (len(kind.findall(sample)) for kind in (_HAN, _KANA, _HANGUL))
        if foreign < 4 or (han + kana + hangul) < 0.6 * foreign:
            continue
        common = sum(c in _COMMON_HAN for c in sample)
        # Shares that running text has: of common characters among Han, of kana in Japanese, of Hangul in Korean.
        likeness = (3 * common + 2 * kana + 1.5 * hangul - 4 * len(_ODD.findall(sample))) / foreign
        if best is None or likeness > best[0]:
            best = (likeness, text, encoding)
    return (best[1], best[2]) if best is not None and best[0] > 0.25 else None
