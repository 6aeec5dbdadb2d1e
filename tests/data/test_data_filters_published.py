"""Gopher's, C4's and FineWeb's rules, Chinese ones, and any text at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.data.cleaning.c4 import C4Lines
from lmworks.data.cleaning.chinese import CHINESE, misread_share, script_mixture
from lmworks.data.cleaning.english_words import split_run
from lmworks.data.cleaning.filters import PRESETS, rules_of, steps_of
from lmworks.data.cleaning.fineweb import FINEWEB_STEPS
from lmworks.data.cleaning.gopher import GOPHER_REPETITION
from lmworks.data.cleaning.lexicon import Words
from lmworks.data.cleaning.published_measures import PublishedMeasures
from lmworks.data.cleaning.rules import Broken, Kept, clean

PROSE = (
    "Lighthouses were built along dangerous coasts to warn ships that land was near. In early times a fire of wood "
    "burned on top of a tower; later, lamps with lenses threw their beam for many miles.\nKeepers lived beside the "
    "lamp, trimmed its wick, wound the clockwork and wrote down the weather. Today most of these towers run by "
    "themselves. People visit them to see the view and to hear old stories of storms and rescues."
)
CHINESE_PROSE = (
    "灯塔建在危险的海岸，提醒船只陆地就在附近。早期人们在塔顶燃烧木柴，后来"
    "改用带透镜的灯，光束可以射出很远。守塔人住在灯旁，修剪灯芯，记录天气。"
)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("don't", "do n't"),
        ("cannot.", "can not ."),
        ("(U.S.)", "( U.S. )"),
        ("Mr.", "Mr."),
        ("10km,", "10 km ,"),
        ("well-known", "well - known"),
        ("www.example.com/a?b=c.", "www.example.com/a?b=c ."),
        ("end.Next", "end . Next"),
        ("value).", "value ) ."),
        ("20°C", "20 ° C"),
        ("foo:)", "foo :)"),
        ("......", "......"),
        ("“Hello,”", "“ Hello , ”"),
    ],
)
def test_words_are_cut_as_the_recipes_cut_them(run, words):
    assert split_run(run) == tuple(words.split())


def test_prose_passes_every_english_preset():
    for preset in ("gopher", "c4", "fineweb"):
        assert clean(PROSE, PRESETS[preset]) == Kept(PROSE)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "gopher_empty"),
        ("\n\n".join([PROSE] * 3), "gopher_paragraphs"),
        ("\n".join(["Chorus here."] * 4 + PROSE.split(". ")), "gopher_lines"),
        (PROSE + " old towers" * 14, "gopher_top_2_gram"),
        (PROSE[:200], "gopher_words"),
        (PROSE + " #" + " #".join(PROSE.split()[20:50]), "gopher_hashes"),
        (PROSE + " 1 22 333 44 5 66 777 8 99 10 11 12 13 14 15 16 17 18 19", "gopher_lettered_words"),
        (PROSE.replace(".", ","), "c4_sentences"),
        (PROSE + " {", "c4_curly_bracket"),
        (PROSE + "\n" + "\n".join(f"amber{n} birch{n} cedar{n}" for n in range(20)), "fineweb_line_ends"),
    ],
)
def test_fineweb_drops_by_the_rule_that_is_meant(text, rule):
    outcome = clean(text, FINEWEB_STEPS)
    assert isinstance(outcome, Broken)
    assert outcome.rule.name == rule
    assert not outcome.rule.low <= outcome.value <= outcome.rule.high


def test_c4_takes_lines_out_in_its_order():
    text = (
        PROSE + "\nTwo words.\nPlease enable JavaScript now.\nRead our privacy policy.\nno mark at all\n" + "x" * 1001
    )
    names = ("c4_words", "c4_javascript", "c4_policy", "c4_terminal_punctuation", "c4_long_word")
    assert clean(text, (C4Lines(),)) == Kept(PROSE, names)
    cited = "One went[1]. Two came. Three sat. Four ran. Five slept."
    assert clean(cited, (C4Lines(),)) == Kept(cited.replace("[1]", ""))


def test_ngrams_agree_with_the_definition():
    sentence = "to be or not to be that is to be or not"
    words = sentence.split() * 2
    measures = PublishedMeasures(" ".join(words))
    pairs = [" ".join(words[i : i + 2]) for i in range(len(words) - 1)]
    most = max(map(pairs.count, pairs))
    first = next(pair for pair in pairs if pairs.count(pair) == most)
    assert measures.ngrams.top(2) == most * len(first)
    seen, at, characters = set(), 0, 0
    while at <= len(words) - 5:
        gram = tuple(words[at : at + 5])
        characters += sum(map(len, gram)) if gram in seen else 0
        at += 5 if gram in seen else 1
        seen.add(gram)
    assert measures.ngrams.repeated(5) == characters > 0
    assert PublishedMeasures("one two three").ngrams.top(3) == len("one two three")


def test_sentences_begin_after_an_end_and_closing_quotes():
    assert Words.of("He said “no.” Then he left! Really?").sentences == 3
    assert Words.of("no end").sentences == Words.of("").sentences == 1


def test_chinese_prose_passes_and_what_is_broken_leaves():
    assert clean(CHINESE_PROSE, CHINESE) == Kept(CHINESE_PROSE)
    broken = CHINESE_PROSE.encode().decode("gbk", errors="ignore")
    assert misread_share(broken) > 0.1
    assert misread_share(CHINESE_PROSE + "镇上的极板、路口的电极") == 0.0
    repeated = clean(CHINESE_PROSE + "海岸的灯塔" * 20 + "。", CHINESE)
    assert isinstance(repeated, Broken)
    assert repeated.rule.name == "top_4_characters"
    assert script_mixture("这个国家的学生们说话") == script_mixture("這個國家的學生們說話") == 0.0
    assert script_mixture("這個國家的学生们说话") > 0.2


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (CHINESE_PROSE + "".join(f"第{n}号，电话13800{n}；" for n in range(100, 120)), "chinese_digits"),
        (CHINESE_PROSE + "【新品上市优惠促销热卖中全场五折】", "chinese_brackets"),
        ("\n".join([CHINESE_PROSE, *(f"{c}闻标题内容。展开" for c in "新旧大小")]), "chinese_read_more"),
        ("\n".join(f"• {part}。" for part in CHINESE_PROSE.split("，")), "chinese_bullet_lines"),
        ("\n".join(f"{part}……" for part in CHINESE_PROSE.split("，")), "chinese_ellipsis_lines"),
        (CHINESE_PROSE + "灯台は危険な海岸に建てられ、船に陸地が近いことを知らせます。" * 2, "japanese"),
        (CHINESE_PROSE + " The lamp was lit by hand every evening of the year." * 4, "han_share"),
    ],
)
def test_chinese_texts_are_dropped_by_the_rule_that_is_meant(text, rule):
    outcome = clean(text, CHINESE)
    assert isinstance(outcome, Broken)
    assert outcome.rule.name == rule


def test_rules_of_a_preset_are_those_its_steps_drop_by():
    names = [rule.name for rule in rules_of("fineweb")]
    assert len(names) == len(set(names))
    assert {"c4_sentences", "gopher_words", "fineweb_newlines"} <= set(names)
    assert steps_of("gopher", 5)[0].low == 5
    assert "gopher_words" not in [rule.name for rule in rules_of("gopher", 5)]


ANY = st.text(st.characters(exclude_categories=()), max_size=60) | st.text(
    "a. \n\t\0\ud800'\"-…({[中国。1", max_size=60
)


@settings(max_examples=60, deadline=None)
@given(ANY, st.sampled_from(sorted(PRESETS)))
def test_any_text_has_an_outcome_and_always_the_same(text, preset):
    outcome = clean(text, PRESETS[preset])
    assert clean(text, PRESETS[preset]) == outcome
    assert "".join(word for run in text.split() for word in split_run(run)) == "".join(text.split())


@pytest.mark.parametrize("text", ["(" * 100_000, "a" * 1_000_000, "a.b@" * 50_000, "\n" * 100_000, ("ab " * 50_000)])
def test_huge_lines_end(text):
    for steps in (GOPHER_REPETITION, FINEWEB_STEPS):
        assert isinstance(clean(text, steps), Kept | Broken)


def test_a_short_chinese_text_that_repeats_nothing_is_kept():
    poem = "秋天的桥上有人看着河水，慢慢地想起从前的朋友和家乡的山，心里觉得很安静，也很想念他们。"
    assert isinstance(clean(poem, steps_of("chinese", 10)), Kept)
    assert clean("春眠不觉晓，处处闻啼鸟。" * 4, steps_of("chinese", 10)).rule.name.startswith("top_")
