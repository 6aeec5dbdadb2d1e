"""One spelling for each text: canonical Unicode, plain newlines, no control characters, mended encoding.

Meaning is never changed: no case, no compatibility folding, no guess that is not certain. Knows no rule
about what is worth keeping.
"""

from __future__ import annotations

import re
import unicodedata
import zlib

_NEWLINES = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_REMOVED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\ufffe\uffff\ud800-\udfff]")
_LINE_ENDS = re.compile(r"[ \t\u00a0\u3000]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_SPACES = re.compile(r"(?<=\S)[ \t\u00a0]+")  # within a line; indentation stays

# What the bytes 0x80..0xBF of a UTF-8 sequence look like after they were read as Windows-1252.
_TRAILING = "".join(bytes([b]).decode("cp1252", errors="ignore") or chr(b) for b in range(0x80, 0xC0))
_MISREAD = re.compile(f"[\u00c2-\u00f4][{re.escape(_TRAILING)}]{{1,3}}")

_SEPARATORS = tuple(map(re.compile, ("\n\n", "\n", r"\. ", "。", " ")))
_AROUND = 32
"""Characters on each side of a cut that choose it."""


def normalize(text: str, *, keep_layout: bool = False) -> str:
    """Normalize a text.

    Args:
        text: any text.
        keep_layout: leave spaces and blank lines as they are, for code.
    """
    text = _NEWLINES.sub("\n", _mend(text))
    text = _REMOVED.sub("", text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if keep_layout:
        return _LINE_ENDS.sub("", text).strip("\n")
    text = _LINE_ENDS.sub("", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


def _mend(text: str) -> str:
    """Undo UTF-8 that was read as Windows-1252 (`cafÃ©`), run by run and only where the bytes are valid UTF-8."""
    while not text.isascii():
        mended = _MISREAD.sub(_reread, text)
        if mended == text:
            break
        text = mended  # some texts were misread more than once
    return text


def _reread(match: re.Match[str]) -> str:
    try:
        data = b"".join(bytes([ord(c)]) if ord(c) < 256 else c.encode("cp1252") for c in match.group())
        return data.decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return match.group()


def divide(text: str, max_characters: int) -> list[str]:
    """Cut a long text into pieces of at most `max_characters`, at the end of a paragraph, line or sentence if it can.

    Of the places that will do, the text around them chooses one (content-defined chunking: Muthitacharoen et al. 2001),
    so copies of a text that begin differently are soon cut at the same places, and their pieces are duplicates. The
    pieces joined give the text back, but for white space at the cuts.
    """
    pieces, begin = [], 0
    while len(text) - begin > max_characters:
        end = begin + max_characters
        for separator in _SEPARATORS:
            cuts = [found.end() for found in separator.finditer(text, begin + max_characters // 2, end)]
            if cuts:
                break
        cut = min(cuts, key=lambda place: (_around(text, place), place), default=end)
        pieces.append(text[begin:cut].strip())
        begin = cut
        while begin < len(text) and text[begin].isspace():
            begin += 1
    return [piece for piece in (*pieces, text[begin:]) if piece]


def _around(text: str, place: int) -> int:
    """A number of the characters before and after a place."""
    return zlib.crc32(text[max(place - _AROUND, 0) : place + _AROUND].encode("utf-8", "surrogatepass"))
