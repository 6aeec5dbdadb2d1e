"""Normalization, dividing and filter rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.data.cleaning.filters import PRESETS, remove_lines, steps_of
from lmworks.data.cleaning.normalize import divide, normalize
from lmworks.data.cleaning.rules import Broken, clean
from lmworks.data.cleaning.text_measures import TextMeasures

SENTENCE = "The keeper of the light walked down to the shore and looked out over the water that morning. "
GOOD = (
    "Lighthouses were built along dangerous coasts to warn ships that land was near. In early times a fire of wood "
    "burned on top of a tower; later, lamps with lenses threw their beam for many miles. Keepers lived beside the "
    "lamp, trimmed its wick, wound the clockwork and wrote down the weather. Today most of these towers run by "
    "themselves, and people visit them to see the view and to hear old stories of storms and rescues."
)


def first_broken(text, steps):
    outcome = clean(text, steps)
    return (outcome.rule, outcome.value) if isinstance(outcome, Broken) else None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("\ufeffz\u00adero\u200b \x00\x07wide", "zero wide"),
        ("a  b\tc\u00a0d   \n\n\n\n  e", "a b c d\n\n  e"),
        ("cafÃ© â€œquotedâ€\x9d â€™s", "café “quoted” ’s"),
        ("Ã\u0192Â©", "é"),
        (
            "Â£5 and São Paulo, naïve, “fine”, Größe, Ångström, Ôé",
            "£5 and São Paulo, naïve, “fine”, Größe, Ångström, Ôé",
        ),
        ("\ud800lone", "lone"),
        ("👩\u200d🚀 می\u200cخواهم", "👩\u200d🚀 می\u200cخواهم"),
    ],
)
def test_normalize(raw, expected):
    assert normalize(raw) == expected


def test_code_keeps_its_layout():
    code = "def f():\n\tif x  ==  1:\n\n\n\n        return 2   \n"
    assert normalize(code, keep_layout=True) == "def f():\n\tif x  ==  1:\n\n\n\n        return 2"


@given(st.text(alphabet="ab .\n。", max_size=300), st.integers(5, 40))
def test_pieces_are_bounded_and_lose_only_white_space(text, most):
    pieces = divide(text, most)
    assert all(0 < len(piece) <= most for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_pieces_end_where_paragraphs_do():
    assert divide("one one\n\ntwo two", 12) == ["one one", "two two"]


# For each rule of the English preset a text that breaks it and no rule before it.
BREAKING = {
    "words": "The cat and the dog sat.",
    "mean_word_length": "a b c d of to be it is so " * 10,
    "symbols_per_word": GOOD + " # of # and # the # that # with # be # to # and # of # end",
    "bullet_lines": "\n".join("- " + line for line in GOOD.split(". ")),
    "ellipsis_lines": "\n".join(line + " ..." for line in GOOD.split(". ")),
    "alphabetic_words": GOOD + " 1234" * 40,
    "stop_words": "Castles rise beside quiet rivers while merchants carry silver toward distant markets. " * 6,
    "lorem_ipsum": GOOD + " Lorem ipsum dolor sit amet.",
    "repeated_lines": "\n".join(["Chorus."] * 4 + GOOD.split(". ")),
    "repeated_line_characters": "\n".join([*GOOD.split(". "), GOOD.split(". ")[1]]),
    "top_2_gram": GOOD + " old towers" * 14,
    "repeated_5_grams": GOOD + " " + GOOD.split(". ")[1] + ".",
    "punctuated_lines": GOOD.replace(".", " and").replace("\n", " "),
    "short_lines": "\n".join(" ".join(GOOD.split()[i : i + 4]) + "." for i in range(0, 70, 4)),
}


@pytest.mark.parametrize("rule", BREAKING)
def test_each_rule_catches_what_it_is_for(rule):
    broken = first_broken(BREAKING[rule], PRESETS["english"])
    assert broken is not None
    assert broken[0].name == rule


def test_good_prose_passes_every_preset():
    for preset in ("prose", "english", "none"):
        assert first_broken(GOOD, PRESETS[preset]) is None


def test_chinese_prose_passes_and_counts_characters():
    text = (
        "灯塔建在危险的海岸，提醒船只陆地就在附近。早期人们在塔顶燃烧木柴，后来"
        "改用带透镜的灯，光束可以射出很远。守塔人住在灯旁，修剪灯芯，记录天气。"
    )
    assert TextMeasures(text).word_count > 50
    assert not TextMeasures(text).spaced
    assert first_broken(text, PRESETS["prose"]) is None


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("x = [" + "1, " * 500 + "]", "longest_line"),
        ("\n".join("value = " + "a" * 110 for _ in range(3)), "mean_line"),
        ("+-*/ =!?# ,.;: " * 5, "alphanumeric"),
        ("# Auto-generated file\nx = 1", "generated"),
        ("", "characters"),
        ("def f(x):\n    return x + 1\n", None),
    ],
)
def test_code_rules(code, rule):
    broken = first_broken(code, PRESETS["code"])
    assert (broken[0].name if broken else None) == rule


def test_min_words_replaces_the_preset_s_bound():
    assert first_broken(SENTENCE * 1, steps_of("english"))[0].name == "words"
    assert first_broken(SENTENCE.strip(), steps_of("english", 10)) is None
    assert first_broken("too short", steps_of("none", 3))[0].name == "words"


def test_policy_lines_go_and_the_rest_stays():
    text = "First line.\nPlease enable JavaScript to read on.\nThis site uses cookies.\nLast line."
    assert remove_lines(text, "english") == ("First line.\nLast line.", ["javascript", "policy"])
    assert remove_lines(text, "prose") == (text, [])


def test_repetition_measures_count_characters_once():
    measures = TextMeasures("a b c d e x a b c d e y")
    assert measures.repeated_ngrams(5) == pytest.approx(10 / 12)
    assert TextMeasures("to be or to be or not").top_ngram(2) == pytest.approx(2 * 4 / 15)
    assert measures.repeated(["aa", "b", "aa"], in_characters=True) == pytest.approx(2 / 5)
    assert measures.repeated(["aa", "b", "aa"], in_characters=False) == pytest.approx(1 / 3)
