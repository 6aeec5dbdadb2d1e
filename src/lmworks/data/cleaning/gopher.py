"""Gopher's rules of quality and repetition, thresholds as published, order as in datatrove. Knows no other preset."""

from __future__ import annotations

from collections.abc import Callable

from lmworks.data.cleaning.published_measures import PublishedMeasures
from lmworks.data.cleaning.rules import Rule

GOPHER = "Gopher, Rae et al. 2021, appendix A.1"


def _top(n: int) -> Callable[[PublishedMeasures], float]:
    return lambda m: m.top_words(n)


def _repeated(n: int) -> Callable[[PublishedMeasures], float]:
    return lambda m: m.repeated_words(n)


GOPHER_REPETITION = (
    Rule("gopher_empty", lambda m: m.characters, low=1, source=GOPHER),
    Rule("gopher_paragraphs", lambda m: m.paragraph_repeats(in_characters=False), high=0.3, source=GOPHER),
    Rule("gopher_paragraph_characters", lambda m: m.paragraph_repeats(in_characters=True), high=0.2, source=GOPHER),
    Rule("gopher_lines", lambda m: m.line_repeats(in_characters=False), high=0.3, source=GOPHER),
    Rule("gopher_line_characters", lambda m: m.line_repeats(in_characters=True), high=0.2, source=GOPHER),
    *(Rule(f"gopher_top_{n}_gram", _top(n), high=high, source=GOPHER) for n, high in ((2, 0.2), (3, 0.18), (4, 0.16))),
    *(
        Rule(f"gopher_repeated_{n}_grams", _repeated(n), high=high, source=GOPHER)
        for n, high in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
)
GOPHER_QUALITY = (
    Rule("gopher_words", lambda m: m.tokens.solid, 50, 100_000, GOPHER),
    Rule("gopher_word_length", lambda m: m.mean_solid_word, 3, 10, GOPHER),
    Rule("gopher_hashes", lambda m: m.per_word("#"), high=0.1, source=GOPHER),
    Rule("gopher_ellipses", lambda m: m.per_word("...", "…"), high=0.1, source=GOPHER),
    Rule("gopher_bullet_lines", lambda m: m.bullet_starts, high=0.9, source=GOPHER),
    Rule("gopher_ellipsis_lines", lambda m: m.ellipsis_ends, high=0.3, source=GOPHER),
    Rule("gopher_lettered_words", lambda m: m.lettered_words, low=0.8, source=GOPHER),
    Rule("gopher_stop_words", lambda m: m.tokens.stop_words, low=2, source=GOPHER),
)
