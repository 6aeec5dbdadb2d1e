"""Runs that occurred before are found exactly as a naive search finds them, and are cut between characters."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import DataError
from lmworks.data.deduplication.substrings import (
    repeated_runs,
    repeated_runs_reference,
    repeated_substrings,
    without,
)


def naive(documents, least):
    """Spans, by looking every window up."""
    seen, spans, offset = set(), [], 0
    for symbols in documents:
        covered = np.zeros(len(symbols), bool)
        for at in range(len(symbols) - least + 1):
            window = tuple(symbols[at : at + least])
            covered[at : at + least] |= window in seen
            seen.add(window)
        for inside, places in itertools.groupby(range(len(symbols)), covered.__getitem__):
            places = list(places)
            spans += [[offset + places[0], offset + places[-1] + 1]] if inside else []
        offset += len(symbols)
    return spans


def flat(documents, dtype):
    return np.asarray([s for d in documents for s in d], dtype), np.cumsum([len(d) for d in documents], dtype=np.int64)


PHRASES = st.lists(st.integers(0, 2), max_size=12)
DOCUMENTS = st.lists(
    st.lists(st.one_of(PHRASES, st.just([0] * 9), st.just([0, 1, 2, 2, 1] * 3)), max_size=5).map(
        lambda parts: [symbol for part in parts for symbol in part]
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(1, 16), st.sampled_from([np.uint8, np.uint16, np.uint32]))
def test_runs_are_those_of_a_naive_search(documents, least, dtype):
    expected = naive(documents, least)
    assert repeated_runs(*flat(documents, dtype), least).tolist() == expected
    assert repeated_runs_reference(*flat(documents, dtype), least).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("a一é\U0001f600\ud800"), max_size=30), min_size=1, max_size=4), st.integers(1, 20)
)
def test_whole_characters_are_cut(texts, least):
    spans = repeated_substrings(texts, least)
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    covered, offset = [], 0
    for text, raw in zip(texts, encoded, strict=True):
        marks = np.zeros(len(raw), bool)
        for begin, end in naive(encoded, least):
            marks[max(begin - offset, 0) : max(end - offset, 0)] = True
        edges = np.cumsum([0, *(len(letter.encode("utf-8", "surrogatepass")) for letter in text)])
        covered.append([marks[begin:end].all() for begin, end in itertools.pairwise(edges)])
        offset += len(raw)
    left = [
        "".join(c for c, out in zip(text, marks, strict=True) if not out)
        for text, marks in zip(texts, covered, strict=True)
    ]
    assert without(texts, spans) == left


def test_one_occurrence_stays():
    quoted = "word for word, a passage that others quote. "
    texts = ["Before. " + quoted, quoted + "After.", "Nothing here.", "x" + quoted + "y" + quoted]
    spans = repeated_substrings(texts, 30)
    assert without(texts, spans) == ["Before. " + quoted, "After.", "Nothing here.", "xy"]
    assert spans.texts.tolist() == [1, 3, 3]


def test_a_run_does_not_cross_documents():
    assert repeated_substrings(["abcdef", "abc", "def"], 4).texts.tolist() == []
    assert repeated_substrings(["abcdef", "abc", "def"], 3).texts.tolist() == [1, 2]


def test_long_texts_with_few_letters_and_common_parts():
    rng = np.random.default_rng(0)
    template = rng.integers(0, 4, 60)
    documents = [np.concatenate([rng.integers(0, 4, 40), template, rng.integers(0, 4, 90)]) for _ in range(60)]
    documents += [documents[7][20:150], np.zeros(500, np.int64), np.tile([1, 2, 3], 100)]
    documents = [document.tolist() for document in documents]
    for least in (20, 50, 64, 100):
        assert repeated_runs(*flat(documents, np.uint8), least).tolist() == naive(documents, least)


def test_what_cannot_be_searched_is_named():
    ends = np.asarray([2], np.int64)
    with pytest.raises(DataError, match="0 symbols are no shortest repetition"):
        repeated_runs(np.zeros(2, np.uint8), ends, 0)
    with pytest.raises(DataError, match="int64 cannot be searched"):
        repeated_runs(np.zeros(2, np.int64), ends, 1)  # type: ignore[arg-type]
