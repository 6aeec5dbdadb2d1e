"""Cuts a run of characters without white space into English words as the published filter recipes count them.

The algorithm and its classes of characters are those that spaCy documents for its English tokenizer (datatrove's choice
for English): peel punctuation off both ends, keep exceptions and addresses whole, cut what is left at hyphens and the
like. Every step is linear in the length of the run. Knows no text beyond one run and no cache.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from lmworks.data.cleaning.english_exceptions import exceptions

MOST_CHARACTERS = 4096
"""A longer run is one word: it is no language, and cutting it character by character takes minutes."""

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪" + _QUOTES
_CURRENCY = "$£€¥฿₽﷼₴" + "".join(map(chr, range(0x20A0, 0x20C0)))
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
)

# Characters beyond ASCII stand in the patterns as one of their kind: ß small, À capital, あ without case, ☺ symbol.
_LOWER, _UPPER = "a-zßµあ", "A-ZÀあ"
_Q = re.escape(_QUOTES)
_PREFIX = re.compile(rf"\.\.+|(?:US|C|A)\$|\+(?![0-9])|[§%=—–☺°{re.escape(_PUNCTUATION)}{re.escape(_CURRENCY)}]")
_SUFFIX = re.compile(
    rf"(?:['’][sS]|(?<=[0-9])(?:\+|(?:US|C|A)\$|[{re.escape(_CURRENCY)}]|{'|'.join(_UNITS.split())})|(?<=°[FfCcKk])\."
    rf"|(?<=[0-9{_LOWER}%²\-+|{re.escape(_PUNCTUATION)}])\.|(?<=[{_UPPER}][{_UPPER}])\.|[—–☺°{re.escape(_PUNCTUATION)}])\Z"
)
_INFIX = re.compile(
    rf"\.\.+|[…☺°]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{_LOWER}{_Q}])\.(?=[{_UPPER}{_Q}])"
    rf"|(?<=[{_LOWER}{_UPPER}]),(?=[{_LOWER}{_UPPER}])"
    rf"|(?<=[{_LOWER}{_UPPER}0-9])(?:---|--|-|–|——|—|~|[:<>=/])(?=[{_LOWER}{_UPPER}])"
)
_ADDRESS = re.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?(?:(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
    r"(?!172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])"
    r"(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
    r"|(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?[A-Za-z0-9\u00a1-\uffff]\.)+[a-zßµあ]{2,63})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)
_AFFIX_WINDOW = 12
"""No suffix, with what it looks back at, is longer, but for a row of periods."""


def split_run(run: str) -> tuple[str, ...]:
    """The words of a run of characters without white space, in order; together they are the run."""
    if len(run) > MOST_CHARACTERS:
        return (run,)
    table, longest, rejoined = _tables()
    words = _cut(run, _shape(run), table, longest)
    return tuple(_rejoin(words, rejoined, table)) if len(words) > 1 else tuple(words)


@cache
def _tables() -> tuple[dict[str, tuple[str, ...]], int, dict[tuple[str, ...], str]]:
    """The exceptions, the length of the longest, and those that may be left in pieces inside a longer run."""
    table = exceptions()
    rejoined = {}
    for word in table:
        pieces = tuple(_cut(word, _shape(word), {}, 0))
        shape = _shape(word)
        if _PREFIX.match(shape) or _suffix(word, shape, 0, len(word)) or _INFIX.search(shape):
            rejoined[pieces] = word
    return table, max(map(len, table)), rejoined


def _shape(run: str) -> str:
    """The run with one representative for each kind of character beyond ASCII that the patterns do not name."""
    return run if run.isascii() else "".join(c if c.isascii() else _representative(c) for c in run)


@cache
def _representative(character: str) -> str:
    if character in _NAMED:
        return character
    if unicodedata.category(character) == "So":
        return "☺"
    if character.isalpha():
        return "ß" if character.islower() else "À" if character.isupper() or character.istitle() else "あ"
    return character


_NAMED = frozenset(_PUNCTUATION + _CURRENCY + "§—–²³µ°")


def _suffix(run: str, shape: str, start: int, end: int) -> int:
    """Length of what ends `run[start:end]` and is a word of its own, else 0."""
    if shape[end - 1] == ".":
        dots = end - start - len(shape[start:end].rstrip("."))
        if dots > 1:
            return dots
    found = _SUFFIX.search(shape[max(start, end - _AFFIX_WINDOW) : end])
    return len(found.group()) if found else 0


def _cut(run: str, shape: str, table: dict[str, tuple[str, ...]], longest: int) -> list[str]:
    """Words before exceptions are put together again."""
    start, end = 0, len(run)
    before: list[str] = []
    after: list[str] = []
    while start < end:
        if end - start <= longest and run[start:end] in table:
            break
        found = _PREFIX.match(shape, start, end)
        prefix = found.end() - start if found else 0
        if prefix and end - start - prefix <= longest and run[start + prefix : end] in table:
            before.append(run[start : start + prefix])
            start += prefix
            break
        suffix = _suffix(run, shape, start + prefix, end) if start + prefix < end else 0
        if suffix and end - start - suffix <= longest and run[start : end - suffix] in table:
            after.append(run[end - suffix : end])
            end -= suffix
            break
        if not prefix and not suffix:
            break
        if prefix:
            before.append(run[start : start + prefix])
            start += prefix
        if suffix:
            after.append(run[end - suffix : end])
            end -= suffix
    middle = run[start:end]
    if middle:
        before += table.get(middle) or _inside(middle, shape[start:end])
    return before + after[::-1]


def _inside(run: str, shape: str) -> list[str]:
    if _ADDRESS.match(shape):
        return [run]
    words, start = [], 0
    for found in _INFIX.finditer(shape):
        if found.start() == start:
            continue
        words += [run[start : found.start()], found.group() if shape is run else run[found.start() : found.end()]]
        start = found.end()
    if start < len(run):
        words.append(run[start:])
    return words


def _rejoin(words: list[str], rejoined: dict[tuple[str, ...], str], table: dict[str, tuple[str, ...]]) -> list[str]:
    """Exceptions that lie in pieces are put together; the longest first, then the leftmost."""
    longest = max(map(len, rejoined))
    taken = [False] * len(words)
    found: dict[int, tuple[int, str]] = {}
    for size in range(min(longest, len(words)), 1, -1):
        for start in range(len(words) - size + 1):
            whole = rejoined.get(tuple(words[start : start + size]))
            if whole is not None and not any(taken[start : start + size]):
                taken[start : start + size] = [True] * size
                found[start] = (size, whole)
    if not found:
        return words
    result: list[str] = []
    at = 0
    while at < len(words):
        size, whole = found.get(at, (1, ""))
        result += table[whole] if whole else [words[at]]
        at += size
    return result
