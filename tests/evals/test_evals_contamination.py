"""Shared runs of thirteen words are found, shorter ones are not, and documents do not run together."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.evals.contamination import NgramIndex, words

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_punctuation():
    index = NgramIndex([f"Before it. {TEXT} and after."])
    assert index.overlaps("Unrelated: TWO, three; four five six seven eight nine ten eleven twelve thirteen FOURTEEN!")


def test_twelve_words_are_not_enough():
    index = NgramIndex([TEXT])
    twelve = " ".join(TEXT.split()[:12])
    assert not index.overlaps(f"other words {twelve} other words")
    assert not index.overlaps(twelve)


def test_grams_do_not_reach_across_documents():
    half, rest = " ".join(TEXT.split()[:7]), " ".join(TEXT.split()[7:])
    assert not NgramIndex([half, rest]).overlaps(TEXT)
    assert NgramIndex([f"{half} {rest}"]).overlaps(TEXT)


def test_unknown_words_match_nothing():
    unknown = " ".join(f"w{i}" for i in range(20))
    assert not NgramIndex([TEXT]).overlaps(unknown)
    assert not NgramIndex([]).overlaps(unknown)


def test_the_count_tells_testable_from_short_items():
    found = NgramIndex([TEXT]).check([TEXT, "too short", " ".join(f"w{i}" for i in range(20)), ""])
    assert (found.items, found.testable, found.overlapping) == (4, 2, 1)
    assert found.found == (True, False, False, False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab ", max_size=40), max_size=5), st.text(alphabet="ab ", max_size=30), st.integers(1, 4)
)
def test_it_agrees_with_sets_of_tuples(documents, text, n):
    def grams(document):
        found = words(document)
        return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}

    expected = bool(grams(text) & {gram for document in documents for gram in grams(document)})
    assert NgramIndex(documents, n).overlaps(text) == expected
