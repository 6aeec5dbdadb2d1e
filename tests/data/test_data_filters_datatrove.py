"""Words, sentences and decisions against datatrove and the spaCy tokenizer that it counts English words with."""

import random
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from lmworks.data.cleaning import english_characters
from lmworks.data.cleaning.c4 import C4Lines, sentences
from lmworks.data.cleaning.english_exceptions import exceptions
from lmworks.data.cleaning.english_words import split_run
from lmworks.data.cleaning.fineweb import FINEWEB_QUALITY
from lmworks.data.cleaning.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from lmworks.data.cleaning.rules import Broken, clean

pytestmark = pytest.mark.slow

NEWLINES = ("\n", "\n", "\n", "\n\n", "\r\n", "\r", "\x85", "\u2028", "\u2029", "\x0b", "\x1c", "\n \n")
SPACES = (" ", " ", " ", " ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "\x1f", "\ufeff")
BULLETS = ("", "", "• ", "- ", "* ", "‣ ", "◦", "–", "  - ", "1. ")
ENDS = (".", ".", ".", "...", "…", "……", ". . .", "…\u200b", "!", "?”", ".)", "", ",", "。", "؟", "।")
ODD = (
    "javascript", "Lorem ipsum", "terms of use", "use cookies", "{", "[1]", "[edit]", "#", "x" * 1001, "İ", "don't",
    "U.S.", "e.g.", ":)", "[:]", "a):]", "中文……好", "1234", "10km.", "🙂", "👩\u200d🚀", "العربية", "हिप-हॉप", "ў.",
    "㎡,㎞", "\u0301", "\x00", "http://a.com/b?c=d", "a@b.co", "a--b", "—", "((", "US$5", "°C.", "5كوب",
)  # fmt: skip
WORDS = (
    "the", "be", "to", "of", "and", "that", "have", "with", "lamp", "keeper", "light", "sea", "coast", "wrote", "night",
)  # fmt: skip


def document(seed):
    rng = random.Random(seed)
    odd, repeats = rng.choice((0, 0.02, 0.3)), rng.choice((0, 0.1, 0.5))
    newlines, spaces, bullets, ends = (
        [*rng.choices(kinds, k=3), kinds[0]] for kinds in (NEWLINES, SPACES, BULLETS, ENDS)
    )
    lines = []
    for _ in range(rng.choice((0, 1, 3, 8, 25))):
        words = [
            rng.choice(ODD if rng.random() < odd else WORDS) + rng.choice(spaces) for _ in range(rng.randint(1, 25))
        ]
        lines.append(rng.choice(bullets) + "".join(words).strip() + rng.choice(ends))
        if rng.random() < repeats:
            lines.append(rng.choice(lines))
    return "".join(line + rng.choice(newlines) for line in lines)


def real_documents():
    paths = [Path(__file__), *sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.txt"))]
    return [path.read_text(encoding="utf-8", errors="replace")[:20_000] for path in paths[:40]]


def test_classes_of_characters_and_exceptions_are_theirs():
    import spacy
    from spacy.lang import char_classes
    from spacy.symbols import ORTH

    pairs = (("LOWER", "ALPHA_LOWER"), ("UPPER", "ALPHA_UPPER"), ("LETTERS", "ALPHA"), ("SYMBOLS", "CONCAT_ICONS"))
    everything = "".join(chr(code) for code in range(128, sys.maxunicode + 1) if code != 0x3A2)  # not assigned
    for ours, theirs in pairs:
        inside = re.compile(f"[{getattr(english_characters, ours)}]").findall(everything)
        assert inside == re.compile(f"[{getattr(char_classes, theirs)}]").findall(everything), ours
    rules = spacy.blank("en").tokenizer.rules.items()
    cut = {form: tuple(part[ORTH] for part in parts) for form, parts in rules if not form.isspace()}
    assert exceptions() == cut


@pytest.mark.parametrize("texts", [real_documents(), [document(seed) for seed in range(150)]], ids=["real", "hostile"])
def test_words_sentences_and_decisions_are_theirs(texts):
    from datatrove.data import Document
    from datatrove.pipeline import filters
    from datatrove.utils.text import split_into_sentences, split_into_words

    chains = (
        (filters.GopherRepetitionFilter(), GOPHER_REPETITION),
        (filters.GopherQualityFilter(), GOPHER_QUALITY),
        (filters.C4QualityFilter(), (C4Lines(),)),
        (filters.C4QualityFilter(filter_no_terminal_punct=False), (C4Lines(terminal_punctuation=False),)),
        (filters.FineWebQualityFilter(), FINEWEB_QUALITY),
    )
    kept = 0
    for text in texts:
        assert [word for run in text.split() for word in split_run(run)] == split_into_words(text)
        for line in text.splitlines()[:5]:
            assert sentences([line.strip()]) == len(split_into_sentences(line.strip()))
        for peer, steps in chains:
            given = Document(text=text, id="")
            verdict, outcome = peer.filter(given), clean(text, steps)
            assert (verdict is True) == (not isinstance(outcome, Broken)), (peer.name, verdict, text)
            if not isinstance(outcome, Broken):
                kept += 1
                assert outcome.text == given.text
    assert kept > len(texts)
