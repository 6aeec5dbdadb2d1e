"""Words, folding and signatures made natively are those of Python and numpy, bit for bit, over all of Unicode."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.data.deduplication.fingerprints import DedupConfig, exact_key, exact_keys, minhash, minhash_reference
from lmworks.data.deduplication.native import TABLED, operations
from lmworks.data.shingles import Shingles, hash_words, hash_words_reference

pytestmark = pytest.mark.skipif(operations() is None, reason="no compiler, so nothing is native")
MIXED = st.text(st.one_of(st.characters(), st.sampled_from("aB_9 \n\t\x1c\u3000·ßŉΐİıſΣςǅ一ア・한ﬃ\ud800\U0001f600")))


@settings(max_examples=80, deadline=None)
@given(st.lists(MIXED, max_size=8))
def test_words_are_those_of_the_reference(texts):
    for ours, reference in zip(hash_words(texts), hash_words_reference(texts), strict=True):
        np.testing.assert_array_equal(ours, reference)


@settings(max_examples=80, deadline=None)
@given(st.lists(MIXED, min_size=1, max_size=8))
def test_keys_are_those_of_the_reference(texts):
    assert exact_keys(texts).tobytes() == b"".join(map(exact_key, texts))


def test_every_code_point_is_read_as_python_reads_it():
    texts = [f"a{chr(point)}b" for point in range(0x110000) if point < 0x3300 or point % 7 == 0]
    for ours, reference in zip(hash_words(texts), hash_words_reference(texts), strict=True):
        np.testing.assert_array_equal(ours, reference)


def test_no_letters_lie_beyond_the_tables():
    beyond = [chr(point) for point in range(TABLED, 0x110000)]
    assert not any(one.isalnum() or one.isspace() or one.casefold() != one for one in beyond)


@pytest.mark.parametrize(("bands", "rows", "ngram"), [(14, 8, 5), (1, 1, 1), (3, 11, 13), (64, 2, 2)])
def test_signatures_are_those_of_the_reference(bands, rows, ngram):
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 50, size))) for size in (0, 1, 4, 5, 6, 13, 300)]
    config = DedupConfig(bands=bands, rows=rows, ngram=ngram)
    shingles = Shingles(texts)
    np.testing.assert_array_equal(minhash(shingles, config), minhash_reference(shingles, config))
