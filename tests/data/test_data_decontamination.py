"""Evaluation items are found in documents, word for word and edited; other text is not touched."""

import gzip
import json
import pickle
import random

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError, DataError
from lmworks.core.generation import Document
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.decontamination.evaluation_sets import EvaluationItem, EvaluationSetConfig, read_evaluation_set
from lmworks.data.decontamination.matching import EvaluationIndex
from lmworks.data.decontamination.step import (
    DecontaminateConfig,
    DecontaminateStep,
    contamination_report,
    decontamination_steps,
    remaining,
)
from lmworks.data.decontamination.words import words
from lmworks.data.steps import Dropped, Tally

VOCABULARY = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]
COMMON = ["the", "of", "and", "to", "in", "a", "is", "that", "it", "was"]


def sentence(rng, length):
    return " ".join(rng.choice(COMMON) if rng.random() < 0.4 else rng.choice(VOCABULARY) for _ in range(length))


def items(count=60, length=40):
    return [EvaluationItem("quiz", str(n), (sentence(random.Random(1000 + n), length),)) for n in range(count)]


def edited(text, rate, rng):
    """Each word is replaced, left out or followed by another with the given probability."""
    out = []
    for word in text.split():
        kind = rng.randrange(3) if rng.random() < rate else 3
        out += {0: [rng.choice(VOCABULARY)], 1: [], 2: [word, rng.choice(VOCABULARY)], 3: [word]}[kind]
    return " ".join(out)


@pytest.mark.parametrize(
    ("rate", "least"), [(0.0, 1.0), (0.01, 1.0), (0.05, 1.0), (0.1, 0.99), (0.2, 0.95), (0.3, 0.75)]
)
def test_planted_items_are_found_at_every_edit_rate(rate, least):
    rng = random.Random(1)
    known = items()
    index = EvaluationIndex(known)
    found = 0
    for item in known:
        text = f"{sentence(rng, 150)} {edited(item.texts[0], rate, rng)} {sentence(rng, 150)}"
        matches = index.find(text)
        assert {match.item for match in matches} <= {item}
        found += bool(matches)
    assert found / len(known) >= least


def test_clean_text_is_not_flagged():
    index = EvaluationIndex(items())
    rng = random.Random(2)
    assert not any(index.find(sentence(rng, 400)) for _ in range(200))


def test_a_single_item_makes_no_common_phrase_telling():
    """With few items every run of words is rare among them; the share within one window still decides."""
    text = "What is the name of the city that is the capital of the country and the seat of its king in the north?"
    index = EvaluationIndex([EvaluationItem("quiz", "1", (text,))])
    assert index.find(f"Question. {text.upper()}")
    assert not index.find(
        "The name of the city is known. It is the capital of the region, one of the oldest of the country."
    )


def test_case_punctuation_width_and_numbers_do_not_matter():
    index = EvaluationIndex(
        [EvaluationItem("s", "1", ("Ann paid 1,000.0 dollars for seven of the twelve small red boats",))]
    )
    (match,) = index.find("…ann PAID 1000 dollars, for 7 of the １２ (small) red boats!")
    assert match.how == "exact"


def test_characters_count_as_words_in_chinese():
    item = EvaluationItem("zh", "1", ("长江是中国最长的河流，发源于青藏高原的唐古拉山脉。",))
    index = EvaluationIndex([item])
    text = "据介绍,长江是中国最长的河流发源于青藏高原的唐古拉山脉,全长六千多公里。"
    (match,) = index.find(text)
    start, end = match.longest
    assert text[start:end] == "长江是中国最长的河流发源于青藏高原的唐古拉山脉"
    assert index.find("资料说，长江乃中国最长的大河流，它发源于青藏高原的唐古拉山一带。")[0].how == "edited"
    assert not index.find("黄河是中国第二长的河流，也是中华文明的摇篮，流经九个省区。")


def test_short_items_must_stand_whole_and_very_short_ones_are_not_tested():
    index = EvaluationIndex(
        [EvaluationItem("s", "a", ("one two red boats left the old harbor",)), EvaluationItem("s", "b", ("yes",))]
    )
    assert index.testable.tolist() == [True, False]
    assert index.find("then 1 2 red boats left the old harbor at dawn")
    assert not index.find("one two red boats left the old pier, yes")


def test_texts_of_an_item_that_are_short_by_themselves_are_told_together():
    rng = random.Random(5)
    known = [EvaluationItem("copa", str(n), tuple(sentence(rng, 5) for _ in range(3))) for n in range(40)]
    index = EvaluationIndex(known)
    assert index.testable.all()
    for item in known:
        (match,) = index.find(f"{sentence(rng, 60)}. {'? '.join(item.texts)} {sentence(rng, 60)}")
        assert (match.item, match.how) == (item, "exact")
        assert not index.find(f"{sentence(rng, 60)} {item.texts[1]} {sentence(rng, 60)}")


def test_a_passage_with_many_questions_is_found_and_an_instruction_of_all_items_is_not():
    rng = random.Random(6)
    passages, instruction = [sentence(rng, 60) for _ in range(3)], sentence(rng, 30)
    known = [
        EvaluationItem("squad", f"{p}-{q}", (instruction, passage, sentence(rng, 12)))
        for p, passage in enumerate(passages)
        for q in range(15)
    ]
    index = EvaluationIndex(known)
    assert not index.find(instruction)
    for how, text in (("exact", passages[1]), ("edited", edited(passages[1], 0.2, rng))):
        found = index.find(f"{sentence(rng, 60)} {text} {sentence(rng, 60)}")
        assert [match.item.name for match in found] == [f"1-{q}" for q in range(15)]
        assert {match.how for match in found} <= {how, "exact"}


def test_items_are_read_in_the_form_that_documents_have():
    item = "Le cafe\u0301 d\u2019Ele\u0301onore e\u0301tait fer\u00adme\u0301 ce matin-la\u0300, dit-on"
    assert EvaluationIndex([EvaluationItem("fr", "1", (item,))]).find(
        "Le café d’Eléonore était fermé ce matin-là, dit-on."
    )


def test_items_too_short_to_be_looked_for_are_counted(tmp_path, capsys):
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"q": "yes or no?"}\n{"q": "one two red boats left the old harbor"}\n')
    decontamination_steps(DecontaminateConfig(sets=(file,)))
    assert "1 of 2 evaluation items are too short" in capsys.readouterr().err


def test_runs_do_not_reach_across_the_texts_of_an_item():
    left, right = sentence(random.Random(1), 10), sentence(random.Random(2), 10)
    index = EvaluationIndex([EvaluationItem("s", "1", (left, right))], overlap=None)
    assert index.find(f"x {right} y")
    assert not index.find(" ".join([*left.split()[4:], *right.split()[:6]]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(alphabet="abc ", min_size=8, max_size=60), min_size=1, max_size=6),
    st.text(alphabet="abc ", max_size=120),
    st.integers(2, 5),
)
def test_exact_matches_agree_with_sets_of_tuples(texts, text, n):
    def grams(of, length):
        found = [word for word, _, _ in words(of)]
        return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}

    index = EvaluationIndex([EvaluationItem("s", str(i), (t,)) for i, t in enumerate(texts)], n, overlap=None)
    owners = {gram: sum(gram in grams(t, n) for t in texts) for t in texts for gram in grams(t, n)}
    assert max(owners.values(), default=0) <= 10
    expected = [str(i) for i, t in enumerate(texts) if grams(t, n) & grams(text, n)]
    assert [match.item.name for match in index.find(text)] == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.lists(st.text(max_size=80), max_size=4))
def test_spans_lie_in_the_text_in_order(text, others):
    index = EvaluationIndex([EvaluationItem("s", "1", (text, *others))], ngram=3)
    for match in index.find(f"{text} {' '.join(others)}"):
        ends = [-1]
        for start, end in match.spans:
            assert ends[-1] < start < end <= len(text) + 1 + len(" ".join(others))
            ends.append(end)


ROWS = [
    {"q": "Which river is the longest?", "choices": ["Nile", "Amazon"], "meta": {"n": 1}},
    {"q": "And the deepest?"},
]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "data.json", "lines.json", "parquet", "csv", "folder"])
def test_sets_are_read_from_every_format(tmp_path, kind):
    path = tmp_path / f"quiz.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    match kind:
        case "jsonl" | "lines.json":
            path.write_text(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json":
            path.write_text(json.dumps(ROWS))
        case "data.json":
            path.write_text(json.dumps({"version": "1", "data": ROWS}))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        case "csv":
            path.write_text("q,choices\nWhich river is the longest?,Nile\nAnd the deepest?,\n")
        case "folder":
            path.mkdir()
            (path / "a.jsonl").write_text(lines.splitlines()[0])
            (path / "b.jsonl").write_text(lines.splitlines()[1])
    read = read_evaluation_set(EvaluationSetConfig(path=path, fields=("q",)))
    assert [item.texts for item in read] == [("Which river is the longest?",), ("And the deepest?",)]
    assert [item.name for item in read] == (["a.jsonl:1", "b.jsonl:1"] if kind == "folder" else ["1", "2"])
    assert read[0].set == "quiz"
    if kind not in ("csv", "parquet"):
        assert read_evaluation_set(EvaluationSetConfig(path=path))[0].texts == (*read[0].texts, "Nile", "Amazon")
    with pytest.raises(DataError, match="no row has text in the fields question"):
        read_evaluation_set(EvaluationSetConfig(path=path, fields=("question",)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{oops", "cannot be read"), ("a.jsonl", b"[1]\n", "not an object"), ("a.jsonl", b"", "no row"),
        ("a.json.gz", b"x", "cannot be read"), ("a.parquet", b"x", "cannot be read"),
        ("a.txt", b"x", "no known format"),
        ("a.jsonl", b"\xff\xfe", "cannot be read"), ("folder/a.txt", b"", "neither a file nor a folder"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_read_are_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_evaluation_set(EvaluationSetConfig(path=file.parent if "/" in name else file))


def test_questions_of_an_article_are_items_with_their_passage(tmp_path):
    file = tmp_path / "squad.json"
    asked = [[{"id": f"q{p}{q}", "question": f"question {q} of {p}", "answers": [{"text": "it"}]} for q in range(2)]
             for p in range(2)]  # fmt: skip
    articles = [{"title": "T", "paragraphs": [{"context": f"passage {p}", "qas": asked[p]} for p in range(2)]}]
    file.write_text(json.dumps({"version": "1.1", "data": articles}))
    found = read_evaluation_set(EvaluationSetConfig(path=file, fields=("question", "context")))
    assert [item.name for item in found] == ["q00", "q01", "q10", "q11"]
    assert found[2].texts == ("question 0 of 1", "passage 1")


def test_a_table_without_names_loses_no_row(tmp_path):
    file = tmp_path / "mgsm.tsv"
    file.write_text("Ann has three apples and eats one of them, how many are left?\t2\nAnd of five pears?\t4\textra\n")
    found = read_evaluation_set(EvaluationSetConfig(path=file, fields=("0",)))
    assert [item.texts[0][:5] for item in found] == ["Ann h", "And o"]
    assert read_evaluation_set(EvaluationSetConfig(path=file))[1].texts == ("And of five pears?", "4", "extra")


def test_only_rows_with_the_given_values_count_and_keep_their_numbers(tmp_path):
    """Splits that lie in one file are told apart by a field, nested ones too."""
    file = tmp_path / "quiz.jsonl"
    rows = [{"q": f"question {n}", "meta": {"split": "test" if n % 2 else "train"}, "hard": n > 2} for n in range(5)]
    file.write_text("\n".join(map(json.dumps, rows)))

    def read(where):
        config = EvaluationSetConfig.parse({"path": file, "fields": ["q"], "where": where})
        return [(item.name, item.texts) for item in read_evaluation_set(config)]

    assert read({"meta.split": "test"}) == [("2", ("question 1",)), ("4", ("question 3",))]
    assert read({"meta.split": "test", "hard": True}) == [("4", ("question 3",))]
    with pytest.raises(DataError, match=r"where meta\.split = 'dev'"):
        read({"meta.split": "dev"})


def test_ids_name_items_where_all_have_their_own(tmp_path):
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"id": "q7", "q": "x y"}\n{"id": "q8", "q": "z"}\n')
    assert [item.key for item in read_evaluation_set(EvaluationSetConfig(path=file, fields=("q",)))] == [
        "quiz/q7",
        "quiz/q8",
    ]


def test_cutting_leaves_what_is_far_enough_away():
    text = "a" * 500 + "MATCH" + "b" * 500 + "MATCH" + "c" * 300
    spans = [(500, 505), (1005, 1010)]
    assert remaining(text, spans, 200) == ["a" * 300]
    assert remaining(text, spans, 100) == ["a" * 400, "b" * 300, "c" * 200]
    assert remaining(text, [(0, len(text))], 0) == []
    assert remaining(text, [], 200) == [text]


@pytest.mark.parametrize("action", ["drop", "cut"])
def test_the_step_drops_or_cuts_and_reports_by_item(action):
    known = items(20)
    step = DecontaminateStep(DecontaminateConfig(sets=("x",), action=action, margin=50), EvaluationIndex(known))
    step = pickle.loads(pickle.dumps(step))
    rng = random.Random(3)
    before, after = sentence(rng, 100), sentence(rng, 100)
    tally = Tally()
    document = Document("d1", f"{before} {known[4].texts[0]} {after}", "web")
    outcome = step(document, tally)
    if action == "drop":
        assert outcome == Dropped("decontaminate/matched", 1.0)
    else:
        assert outcome.text.split("\n\n") == [before[:-49].strip(), after[49:].strip()]
    (row,) = contamination_report(tally)
    assert (row["item"], row["documents"]) == ("quiz/4", 1)
    assert row["found"][0]["document"] == "d1"
    assert known[4].texts[0].startswith(row["found"][0]["text"][:100])
    assert step(Document("d2", before), tally).text == before
    assert step(Document("d3", known[0].texts[0]), Tally()) == Dropped(
        "decontaminate/matched" if action == "drop" else "decontaminate/cut_up", 1.0 if action == "drop" else 0.0
    )


def test_a_corpus_is_prepared_without_the_items_and_says_so(tmp_path):
    rng = random.Random(4)
    known = items(10)
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps({"question": i.texts[0]}) + "\n" for i in known))
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(8):
        planted = edited(known[number].texts[0], 0.1, rng) if number < 3 else ""
        (folder / f"{number}.txt").write_text(f"{sentence(rng, 120)} {planted} {sentence(rng, 80)}")
    values = {"inputs": [str(folder)], "output": str(tmp_path / "corpus"), "preset": "none", "validation_fraction": 0}
    config = PrepareConfig.parse({**values, "decontaminate": {"sets": [str(tmp_path / "quiz.jsonl")]}})
    manifest = prepare(config)
    assert manifest.metrics["train_documents"] == 5
    report = json.loads((tmp_path / "corpus/report.json").read_text())
    assert [row["item"] for row in report["contamination"]] == ["quiz/1", "quiz/2", "quiz/3"]
    assert next(row for row in report["rules"] if row["name"] == "matched")["dropped"] == 3
    assert "Evaluation items found: 3" in (tmp_path / "corpus/report.html").read_text()
    assert "decontaminate.sets.0" in {parent.role for parent in manifest.parents}
    before = config.work_key()
    (tmp_path / "quiz.jsonl").write_text('{"question": "another"}\n')
    assert config.work_key() != before


def test_configurations_are_checked(tmp_path):
    assert decontamination_steps(None) == ()
    for values in (
        {"sets": []},
        {"sets": ["x"], "overlap": 0},
        {"sets": ["x"], "ngram": 1},
        {"sets": ["x"], "action": "no"},
    ):
        with pytest.raises(ConfigError):
            DecontaminateConfig.parse(values)
    with pytest.raises(DataError, match="neither a file nor a folder"):
        decontamination_steps(DecontaminateConfig(sets=(tmp_path / "none",)))
