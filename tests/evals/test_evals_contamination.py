"""Shared runs of thirteen words are found in every corpus behind a model, and are never passed over in silence."""

import json
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import EvalError
from lmworks.core.generation import Document
from lmworks.core.lineage import write_artifact
from lmworks.data.decontamination.words import words
from lmworks.evals.contamination import find_overlaps, learned_from, other_corpora
from lmworks.evals.evaluate import EvalConfig, evaluate

TEXT = "ann two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def overlaps(text, documents, n=13):
    found = find_overlaps({"t": [text]}, [Document(str(i), d) for i, d in enumerate(documents)], n)
    return found["t"].found == (True,)


def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_punctuation():
    item = "Unrelated: TWO, three; four five six seven eight nine ten eleven twelve thirteen FOURTEEN!"
    assert overlaps(item, [f"Before it. {TEXT} and after."])


def test_twelve_words_are_not_enough_unless_they_are_the_item():
    twelve = " ".join(TEXT.split()[:12])
    assert not overlaps(f"other words {twelve} other words", [TEXT])
    assert overlaps(twelve, [TEXT])


def test_grams_do_not_reach_across_documents():
    half, rest = " ".join(TEXT.split()[:7]), " ".join(TEXT.split()[7:])
    assert not overlaps(TEXT, [half, rest])
    assert overlaps(TEXT, [f"{half} {rest}"])


def test_characters_are_words_in_chinese():
    assert overlaps("长江是中国最长的河流发源于哪里？", ["众所周知，长江是中国最长的河流，发源于哪里"])
    assert not overlaps("问：长江是中国最长的河流发源于哪里？", ["长江是中国的河流"])


def test_the_count_tells_testable_from_short_items_and_shows_where():
    unknown = " ".join(f"w{i}" for i in range(20))
    found = find_overlaps({"a": [TEXT, "too short", unknown, ""], "b": [unknown]}, [Document("d7", f"so {TEXT}!")])
    assert (found["a"].items, found["a"].testable, found["a"].overlapping) == (4, 2, 1)
    assert found["a"].found == (True, False, False, False)
    assert found["a"].examples == (("d7", TEXT),)
    assert found["b"].overlapping == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab ", max_size=40), max_size=5), st.text(alphabet="ab ", max_size=30), st.integers(2, 4)
)
def test_it_agrees_with_sets_of_tuples(documents, text, n):
    def grams(document):
        found = [word for word, _, _ in words(document)]
        return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}

    expected = bool(grams(text) & {gram for document in documents for gram in grams(document)})
    assert overlaps(text, documents, n) == expected


@pytest.fixture
def trained(tmp_path, corpus):
    """A model folder whose lineage names a corpus of its own, which holds two validation documents of `corpus`."""
    rows = [json.loads(line) for line in (corpus / "validation.jsonl").read_text().splitlines()]
    with write_artifact(tmp_path / "own", "corpus", config={}) as writer:
        lines = [{"id": f"own{i}", "text": f"Copied. {rows[i]['text']}"} for i in (2, 4)]
        (writer.folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with write_artifact(tmp_path / "tokens", "tokens", config={}, parents={"corpus": tmp_path / "own"}):
        pass
    with write_artifact(tmp_path / "model", "model", config={}, parents={"tokens": tmp_path / "tokens"}):
        pass
    return tmp_path / "model"


def measured(trained, corpus, byte_model, tmp_path, **fields):
    config = EvalConfig(
        models={"m": trained},
        corpus=corpus,
        output=tmp_path / "out",
        tasks=("bits-per-byte",),
        baselines=False,
        **fields,
    )
    return evaluate(config, load=lambda path: byte_model())


def test_the_corpora_behind_a_model_are_searched_and_scores_told_apart(trained, corpus, byte_model, tmp_path):
    assert [path.name for path in learned_from(trained).corpora] == ["own"]
    manifest = measured(trained, corpus, byte_model, tmp_path)
    (row,) = manifest.metrics["contamination"]
    assert (row["items"], row["overlapping"]) == (12, 3), "one in the corpus itself, two in the model's own"
    assert {document for document, _ in row["examples"]} == {"7", "own2", "own4"}
    (score,) = manifest.metrics["scores"]
    sizes = [len(json.loads(line)["text"].encode()) for line in (corpus / "validation.jsonl").read_text().splitlines()]
    dirty = sum(sizes[i] for i in (2, 4, 11)) / sum(sizes)
    mixed = score["clean_value"] * (1 - dirty) + score["contaminated_value"] * dirty
    assert mixed == pytest.approx(score["value"])
    text = (manifest.path / "results.md").read_text()
    assert "Clean and contaminated items apart" in text
    assert "own" in next(line for line in text.splitlines() if "looked for" in line)


def test_contaminated_items_fail_before_any_model_runs_where_that_is_asked(trained, corpus, tmp_path):
    def never():
        raise AssertionError("a model was loaded")

    with pytest.raises(EvalError, match="bits-per-byte: 3 of 12"):
        measured(trained, corpus, never, tmp_path, contaminated="fail")


def test_clean_items_pass_under_the_same_flag(corpus, byte_model, tmp_path):
    rng = random.Random(0)
    clean = [{"id": str(i), "text": " ".join(f"w{rng.randrange(9999)}" for _ in range(40))} for i in range(30)]
    (corpus / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clean))
    manifest = measured(tmp_path / "bare", corpus, byte_model, tmp_path, contaminated="fail")
    assert manifest.metrics["contamination"][0]["overlapping"] == 0
    assert "m: its lineage is unknown" in (manifest.path / "results.md").read_text()


def test_a_corpus_that_is_gone_or_changed_is_told(trained, tmp_path, corpus):
    assert list(other_corpora({"m": trained}, corpus)) == [tmp_path / "own"]
    shutil.rmtree(tmp_path / "own")
    assert "gone or has changed" in learned_from(trained).unknown
    assert list(other_corpora({"m": trained}, corpus)) == []
