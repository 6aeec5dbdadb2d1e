"""Cuts a run of characters without white space into English words as the published filter recipes count them.

The algorithm is the one that spaCy documents for its English tokenizer (datatrove's choice for English): peel
punctuation off both ends, keep exceptions and addresses whole, cut what is left at hyphens and the like. Each run
stands for itself; in spaCy the run before may prevent an exception, as the `)` of `x[f(a) :]` does: `:]` is one word
here and two there. Every step is linear in the length of the run. Knows no text beyond one run and no cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from lmworks.data.cleaning.english_characters import LETTERS, LOWER, SYMBOLS, UPPER
from lmworks.data.cleaning.english_exceptions import exceptions

_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪" + _QUOTES
_CURRENCY = "$£€¥฿₽﷼₴" + "".join(map(chr, range(0x20A0, 0x20C0)))
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч "
    "кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ كم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ غرام جرام جم كغ ملغ "
    "كوب اكواب"
)
_AFFIX_WINDOW = 12
"""No suffix, with what it looks back at, is longer, but for a row of periods."""


class _Patterns:
    """Where a run is cut.

    Args:
        lower: class of letters that are small or have no case.
        upper: class of letters that are large or have no case.
        letters: class of all letters.
        symbols: class of symbols.
    """

    def __init__(self, lower: str, upper: str, letters: str, symbols: str) -> None:
        quotes, marks = re.escape(_QUOTES), re.escape(_PUNCTUATION)
        coins = f"(?:US|C|A)\\$|[{re.escape(_CURRENCY)}]"
        self.prefix = re.compile(rf"\.\.+|\+(?![0-9])|{coins}|[§%=—–{marks}{symbols}]")
        self.suffix = re.compile(
            rf"(?:['’][sS]|(?<=[0-9])(?:\+|{coins}|{'|'.join(_UNITS.split())})|(?<=°[FfCcKk])\."
            rf"|(?<=[0-9{lower}%²\-+|{marks}])\.|(?<=[{upper}][{upper}])\.|……|[—–{marks}{symbols}])\Z"
        )
        self.infix = re.compile(
            rf"\.\.+|[…{symbols}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])"
            rf"|(?<=[{letters}]),(?=[{letters}])|(?<=[{letters}0-9])(?:---?|——?|[-–~:<>=/])(?=[{letters}])"
        )
        self.address = re.compile(
            r"(?:[\w+\-.]{2,}://)?(?:\S+@)?(?:(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
            r"(?!172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])"
            r"(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
            r"|(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?[A-Za-z0-9\u00a1-\uffff]\.)+"
            rf"[{lower}]{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?\Z"
        )


_OF_ASCII = _Patterns("a-z", "A-Z", "a-zA-Z", "")
_OF_ALL = _Patterns(LOWER, UPPER, LETTERS, SYMBOLS)
"""Right for every run; on one of ASCII alone they take twice as long."""


@dataclass(frozen=True)
class _Exceptions:
    """Forms that stay whole, or are cut in their own way.

    Args:
        words: of each form.
        pieces: forms that may be left in pieces inside a longer run, by these.
    """

    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pieces: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    longest: int = field(init=False)
    sizes: dict[str, set[int]] = field(init=False, default_factory=dict)
    """How many pieces there may be from a first piece on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "longest", max(map(len, self.words), default=0))
        for pieces in self.pieces:
            self.sizes.setdefault(pieces[0], set()).add(len(pieces))


def split_run(run: str) -> tuple[str, ...]:
    """The words of a run of characters without white space, in order; together they are the run."""
    patterns, known = _OF_ASCII if run.isascii() else _OF_ALL, _exceptions()
    return tuple(_rejoin(_cut(run, patterns, known), known))


@cache
def _exceptions() -> _Exceptions:
    words = exceptions()
    pieces = {}
    for form in words:
        cut = tuple(_cut(form, _OF_ALL, _Exceptions()))
        if _OF_ALL.prefix.match(form) or _suffix(form, 0, len(form), _OF_ALL) or _OF_ALL.infix.search(form):
            pieces[cut] = form
    return _Exceptions(words, pieces)


def _suffix(run: str, start: int, end: int, patterns: _Patterns) -> int:
    """Length of what ends `run[start:end]` and is a word of its own, else 0."""
    dots = 0
    while dots < end - start and run[end - dots - 1] == ".":
        dots += 1
    if dots > 1:
        return dots
    found = patterns.suffix.search(run[max(start, end - _AFFIX_WINDOW) : end])
    return len(found.group()) if found else 0


def _cut(run: str, patterns: _Patterns, known: _Exceptions) -> list[str]:
    """Words before exceptions are put together again."""
    start, end = 0, len(run)
    before: list[str] = []
    after: list[str] = []

    def excepted(start: int, end: int) -> bool:
        return end - start <= known.longest and run[start:end] in known.words

    while start < end and not excepted(start, end):
        found = patterns.prefix.match(run, start, end)
        prefix = found.end() - start if found else 0
        if prefix and excepted(start + prefix, end):
            suffix = 0
        else:
            suffix = _suffix(run, start + prefix, end, patterns) if start + prefix < end else 0
            if suffix and excepted(start, end - suffix):
                prefix = 0
        if not prefix and not suffix:
            break
        if prefix:
            before.append(run[start : start + prefix])
            start += prefix
        if suffix:
            after.append(run[end - suffix : end])
            end -= suffix
    if start < end:
        before += known.words.get(run[start:end]) or _inside(run[start:end], patterns)
    return before + after[::-1]


def _inside(run: str, patterns: _Patterns) -> list[str]:
    if "." in run and patterns.address.match(run):
        return [run]
    words, start = [], 0
    for found in patterns.infix.finditer(run):
        if found.start() == 0:
            continue
        if found.start() > start:
            words.append(run[start : found.start()])
        words.append(found.group())
        start = found.end()
    if start < len(run):
        words.append(run[start:])
    return words


def _rejoin(words: list[str], known: _Exceptions) -> list[str]:
    """Exceptions that lie in pieces are put together; the longest first, then the leftmost."""
    if len(words) < 2 or known.sizes.keys().isdisjoint(words):
        return words
    spans = sorted(
        (-size, start, form)
        for start, word in enumerate(words)
        for size in known.sizes.get(word, ())
        if start + size <= len(words) and (form := known.pieces.get(tuple(words[start : start + size])))
    )
    taken: set[int] = set()
    chosen: dict[int, tuple[int, str]] = {}
    for less, start, form in spans:
        if start not in taken and start - less - 1 not in taken:
            chosen[start] = (-less, form)
        taken.update(range(start, start - less))
    result: list[str] = []
    at = 0
    while at < len(words):
        size, form = chosen.get(at, (1, ""))
        result += known.words[form] if form else [words[at]]
        at += size
    return result
