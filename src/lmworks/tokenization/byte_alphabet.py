"""The letters that byte-level BPE writes bytes as (GPT-2), both ways. Knows no vocabulary."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    """Printable Latin-1 stands for itself; the other bytes take the code points from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTE_OF = _alphabet()
LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}


def to_bytes(token: str) -> bytes:
    """The bytes a vocabulary entry stands for; an added token written in plain text is its own UTF-8."""
    if all(letter in BYTE_OF for letter in token):
        return bytes(BYTE_OF[letter] for letter in token)
    return token.encode()
