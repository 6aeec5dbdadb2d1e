"""Exact match, F1 and containment against hand-worked cases and an independent transcription of SQuAD's rule."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.grading.text import contains, exact_match, f1, normalize, tokens


def squad_normalize(text):
    """The published rule, ASCII punctuation only, written step by step."""
    lowered = text.lower()
    no_punctuation = lowered.translate(str.maketrans("", "", string.punctuation))
    no_articles = re.sub(r"\b(a|an|the)\b", " ", no_punctuation)
    return " ".join(no_articles.split())


def squad_f1(prediction, reference):
    predicted, wanted = squad_normalize(prediction).split(), squad_normalize(reference).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


ascii_text = st.text(alphabet=st.sampled_from(list("aAtThHeEnNx 0.,-'$^\n")), max_size=25)


@given(ascii_text)
def test_normalization_is_squads_on_ascii(text):
    assert normalize(text) == squad_normalize(text)


@given(ascii_text, ascii_text)
def test_f1_is_squads_on_ascii(prediction, reference):
    assert f1(prediction, [reference]) == pytest.approx(squad_f1(prediction, reference))


@given(st.text(max_size=20), st.text(max_size=20))
def test_grades_are_ordered_and_bounded(prediction, reference):
    exact, found, overlap = (g(prediction, [reference]) for g in (exact_match, contains, f1))
    assert 0 <= overlap <= 1
    assert exact <= found, "an exact answer contains its reference"
    assert exact <= overlap, "an exact answer has full overlap"


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "found", "overlap"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1, 1),
        ("It is the Eiffel Tower.", "Eiffel Tower", 0, 1, 2 * 2 / (4 + 2)),
        ("party", "art", 0, 0, 0),
        ("tower eiffel", "eiffel tower", 0, 0, 1),
        ("", "x", 0, 0, 0),
        ("the", "", 1, 1, 1),
        ("x", "", 0, 0, 0),
        ("new new york", "new york", 0, 1, 2 * 2 / 5),
        ("\u300a北京\u300b\u3002", "北京", 1, 1, 1),
        ("首都是北京", "北京", 0, 1, 2 * 2 / 7),
    ],
)
def test_known_cases(prediction, reference, exact, found, overlap):
    assert exact_match(prediction, [reference]) == exact
    assert contains(prediction, [reference]) == found
    assert f1(prediction, [reference]) == pytest.approx(overlap)


def test_the_best_reference_counts():
    assert exact_match("Paris", ["London", "paris"]) == 1
    assert f1("New York City", ["Boston", "New York"]) == pytest.approx(4 / 5)


def test_ideographs_are_words():
    assert tokens("GPT是模型") == ["gpt", "是", "模", "型"]


@pytest.mark.parametrize("grade", [exact_match, contains, f1])
def test_references_must_be_a_nonempty_list(grade):
    with pytest.raises(ValueError, match="empty"):
        grade("x", [])
    with pytest.raises(ValueError, match="wrap it in a list"):
        grade("x", "reference")
