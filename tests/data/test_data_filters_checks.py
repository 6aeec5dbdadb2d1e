"""Licences, word lists and languages of documents, as steps and as settings of a corpus and its inputs."""

import json

import pytest
from pydantic import ValidationError

from lmworks.core.errors import ConfigError, DataError
from lmworks.core.generation import Document
from lmworks.data.cleaning.language import LanguageStep, identify
from lmworks.data.cleaning.licenses import LicenseConfig
from lmworks.data.cleaning.word_lists import Phrases, WordListConfig, WordListStep
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.steps import Dropped, Tally

SENTENCES = {
    "en": "The committee met on Tuesday and decided that the bridge would be repaired before the winter.",
    "de": "Der Ausschuss tagte am Dienstag und beschloss, dass die Brücke vor dem Winter repariert wird.",
    "fr": "Le comité s'est réuni mardi et a décidé que le pont serait réparé avant l'hiver prochain.",
    "es": "El comité se reunió el martes y decidió que el puente sería reparado antes del invierno.",
    "ru": "Комитет собрался во вторник и решил, что мост будет отремонтирован до наступления зимы.",
    "zh": "委员会星期二开会，决定在冬天到来之前修好这座桥，并且请工程师提出计划。",
    "ja": "委員会は火曜日に開かれ、冬が来る前に橋を修理することを決定しました。",
    "ko": "위원회는 화요일에 모여 겨울이 오기 전에 다리를 수리하기로 결정했습니다.",
    "ar": "اجتمعت اللجنة يوم الثلاثاء وقررت إصلاح الجسر قبل حلول فصل الشتاء.",
    "hi": "समिति की बैठक मंगलवार को हुई और यह निर्णय लिया गया कि सर्दियों से पहले पुल की मरम्मत की जाएगी।",
    "sw": "Kamati ilikutana siku ya Jumanne na kuamua kwamba daraja litatengenezwa kabla ya majira ya baridi.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_a_language_is_recorded_and_others_leave(language):
    document, tally = Document("a", SENTENCES[language]), Tally()
    kept = LanguageStep((language,), threshold=0.65)(document, tally)
    assert kept.meta == {"language": language}
    assert document.meta == {}
    other = "en" if language != "en" else "de"
    assert LanguageStep((other,))(document, tally) == Dropped("language/not_allowed", 0.0)
    assert tally.counts("languages") == {language: 2}


def test_an_uncertain_language_leaves_and_without_a_list_all_stay():
    vague = Document("a", "taxi hotel radio")
    outcome = LanguageStep(("en", "de", "fr", "es"), threshold=1.0)(vague, Tally())
    assert isinstance(outcome, Dropped)
    assert LanguageStep()(vague, Tally()).meta["language"]
    assert LanguageStep()(Document("b", "1234 !!"), Tally()).meta["language"] == "und"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("他告訴記者，縣政府週二決定修好這座橋，經費由國會撥給。", "zh"),
        ("委员会至多用三十万欧元（三十六万美元）修桥。", "zh"),
        ("你好", "zh"),
        ("佢哋話唔係咁樣嘅，我哋今日去咗街。", "yue"),
        ("阿拉上海人讲闲话，伊搿个辰光勿晓得。", "wuu"),
        ("ދިވެހިބަހަކީ ދިވެހިރާއްޖޭގެ ރަސްމީ ބަހެވެ", "und"),
        ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ and more", "und"),
        ("ⵜⴰⵎⴰⵣⵉⵖⵜ", "und"),
        ("ok", "und"),
        ("\ud800", "und"),
        ("🙂🙂", "und"),
        ("xqzv wkjf qwpzx vbnmk", "zxx"),
    ],
)
def test_what_is_no_language_that_is_known_and_the_languages_of_china(text, code):
    found = identify(text)
    assert found.code == code
    assert 0.0 <= found.probability <= 1.0
    assert found.probability > 0.9 or code in ("und", "zxx")


def test_a_language_that_cannot_be_told_is_refused_before_any_work(tmp_path):
    (tmp_path / "a.txt").write_text(SENTENCES["en"])
    config = PrepareConfig(inputs=(tmp_path / "a.txt",), output=tmp_path / "c", language={"allow": ("xx",)})
    with pytest.raises(ConfigError, match="xx cannot be identified"):
        prepare(config)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("mit", True), ("CC-BY-4.0", True), ("CC-BY-NC-4.0", False), ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False), ("GPL-3.0-only AND MIT OR MIT", True),
        ("GPL-3.0-only AND (MIT OR MIT)", False), ("(MIT)", True), ("MIT WITH Some-exception", True),
        ("unspecified", False), ("", False), ("MIT OR", False), ("(MIT", False), ("Some free text", False),
        ("mit or gpl-3.0-only", True), ("CC-BY-NC-4.0 OR MIT", True),
    ],
)  # fmt: skip
def test_an_expression_of_licences_is_read(expression, allowed):
    assert LicenseConfig(allow=("MIT", "CC-BY-*"), deny=("*-NC-*",)).permits(expression) is allowed


def test_without_a_list_only_what_is_denied_leaves():
    config = LicenseConfig(deny=("GPL-*", "unspecified"))
    assert config.permits("anything at all")
    assert not config.permits("unspecified")
    assert config.permits("MIT OR GPL-2.0-only")


@pytest.mark.parametrize(
    ("allow", "expression", "allowed"),
    [
        ("GPL-2.0-only", "GPL-2.0", True), ("GPL-2.0", "GPL-2.0-only", True), ("GPL-2.0-only", "GPL-2.0+", True),
        ("GPL-2.0-or-later", "GPL-2.0+", True), ("GPL-2.0+", "gpl-2.0-or-later", True), ("GPL-2.0", "GPL-3.0+", False),
        ("GPL-3.0-only", "GPL-2.0-or-later", False), ("GPL-2.0-or-later", "GPL-2.0-only", False),
        ("Apache-2.0", "Apache-2.0+", True), ("MIT", "MIT/Apache-2.0", True), ("MIT", "MIT WITH", False),
        ("MIT", "MIT WITH OR", False), ("LicenseRef-*", "LicenseRef-ours", True),
        ("Public domain", "public domain", True), ("LGPL-2.1-only", "LGPL-2.1", True), ("MIT", "MIT, BSD", False),
        (" MIT ", "MIT", True),
        ("MIT", "(" * 40 + "MIT" + ")" * 40, True), ("MIT", "(" * 9_000 + "MIT" + ")" * 9_000, False),
    ],
)  # fmt: skip
def test_licences_go_by_the_names_that_people_write(allow, expression, allowed):
    assert LicenseConfig(allow=(allow,)).permits(expression) is allowed


def test_what_is_no_expression_is_denied_for_any_of_its_words():
    config = LicenseConfig(deny=("GPL-*",))
    for unclear in ("MIT, GPL-2.0", "MIT; GPL-3.0+", "(MIT AND GPL-3.0", "MIT & GPL-2.0"):
        assert not config.permits(unclear)
    assert config.permits("MIT/GPL-2.0")
    assert config.permits("LGPL-2.1, MIT")


@pytest.mark.parametrize("pattern", ["", "  ", "MIT OR Apache-2.0", "GPL-2.0-only with Classpath-exception-2.0"])
def test_an_expression_is_no_name_of_a_licence(pattern):
    with pytest.raises(ValidationError, match="no name of a licence"):
        LicenseConfig(deny=(pattern,))


def test_phrases_are_whole_words_in_any_case_and_script():
    phrases = Phrases(["bad word", "Grob", "坏话", "  ", "grob"])
    assert len(phrases) == 3
    assert phrases.count("A BAD, word; a badword; bad. Word! Grob ungrob") == 3
    assert phrases.count("他说坏话，坏 话") == 2
    assert phrases.count("") == 0


@pytest.mark.parametrize(
    ("phrase", "text", "times"),
    [
        ("cafe\u0301", "CAFÉ café cafe", 2), ("bad", "ｂａｄ 𝐛𝐚𝐝 _bad_ bad's badly b4d", 4),
        ("坏话", "坏＊话 他说坏话。", 2),
        ("ไทย", "ภาษาไทยดี", 1), ("काम", "कम काम", 1), ("straße", "STRASSE", 1), ("bad word", "bad\nword, bad-word", 2),
        ("မြန်မာ", "သူမြန်မာစကား", 1), ("c", "c++ ça", 1),
    ],
)  # fmt: skip
def test_a_word_is_found_as_it_is_written_elsewhere(phrase, text, times):
    assert Phrases([phrase]).count(text) == times


def test_a_long_list_with_one_first_word_takes_no_longer():
    phrases = Phrases(f"the {number} lamps" for number in range(20_000))
    assert phrases.count("the 77 lamps of the " * 2_000) == 2_000


def test_a_list_drops_what_holds_too_much_of_it(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("# remark\nfoul  # inline\n\nvile thing\n")
    tally = Tally()
    step = WordListStep(WordListConfig(name="harmful", path=file, max_matches=1))
    one, two = Document("1", "A foul wind."), Document("2", "A foul wind, a vile thing.")
    assert step(one, tally) is one
    assert step(two, tally) == Dropped("words/harmful", 2)
    assert tally.counts("listed_words") == {"harmful": 3}
    for content in (b"", b"# nothing\n", b"\xff\xfe\xfa"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="word list"):
            WordListStep(WordListConfig(name="harmful", path=file))


def test_a_corpus_drops_by_language_licence_and_words(tmp_path):
    rows = [{"text": text, "license": "MIT"} for text in SENTENCES.values()]
    rows.append({"text": SENTENCES["en"].replace("Tuesday", "Monday"), "license": "GPL-3.0-only"})
    rows.append({"text": SENTENCES["en"].replace("bridge", "dreadful wall"), "license": "MIT OR GPL-3.0-only"})
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.txt").write_text("dreadful\n")
    french = tmp_path / "french.txt"
    french.write_text(SENTENCES["fr"].replace("mardi", "lundi"))
    config = PrepareConfig.parse(
        {
            "inputs": [str(source), {"path": str(french), "language": {"allow": ["fr"]}}],
            "output": str(tmp_path / "c"),
            "preset": "none",
            "validation_fraction": 0.0,
            "license": "MIT",
            "language": {"allow": ["en", "zh"]},
            "licenses": {"deny": ["GPL-*"]},
            "words": [{"name": "harmful", "path": str(tmp_path / "list.txt")}],
        }
    )
    manifest = prepare(config)
    kept = [json.loads(line) for line in (tmp_path / "c/train.jsonl").read_text().splitlines()]
    assert sorted(row["meta"]["language"] for row in kept) == ["en", "fr", "zh"]
    report = json.loads((tmp_path / "c/report.json").read_text())
    dropped = {f"{rule['preset']}/{rule['name']}": rule["dropped"] for rule in report["rules"] if rule["dropped"]}
    assert dropped == {"license/not_allowed": 1, "language/not_allowed": 9, "words/harmful": 1}
    assert {parent.role for parent in manifest.parents} == {"inputs.0", "inputs.1", "words.0"}
