"""The compressors' figures against the compressors themselves."""

import lzma

import pytest

from lmworks.core.errors import EvalError
from lmworks.evals import baselines
from lmworks.evals.baselines import BASELINES, gzip_baseline, order_n_baseline, within, xz_baseline
from lmworks.evals.byte_ngram import ByteNgramModel
from lmworks.evals.primed_xz import primed_xz_size

TRAIN = [b"Carmen is an opera in four acts by Georges Bizet. " * 3, b"A comet is an icy small body. " * 4]
HELDOUT = [b"Aida is an opera in four acts by Giuseppe Verdi.", b"An asteroid is a rocky small body."]


def xz_size(text):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return len(lzma.compress(text, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters))


@pytest.mark.parametrize("scale", [1, 300])
def test_primed_xz_is_the_difference_of_two_compressions(scale):
    first, second = b"".join(TRAIN) * scale, b"".join(HELDOUT)
    expected = xz_size(first + second) - xz_size(first)
    assert abs(primed_xz_size(first, second) - expected) <= 4, "the container pads to four bytes"


def test_priming_helps_and_gzip_is_not_primed():
    alone = gzip_baseline([], HELDOUT).bits
    assert gzip_baseline(TRAIN, HELDOUT).bits == alone
    assert xz_baseline(TRAIN, HELDOUT).bits < alone


def test_the_order_n_baseline_scores_each_document():
    found = order_n_baseline(TRAIN, HELDOUT)
    assert found.document_bits == pytest.approx(tuple(ByteNgramModel(TRAIN, 5).bits(HELDOUT)))
    assert found.bits == pytest.approx(sum(found.document_bits))


def test_the_table_is_in_bits():
    for name, method in BASELINES.items():
        bits_per_byte = method(TRAIN * 20, HELDOUT).bits / sum(map(len, HELDOUT))
        assert 0.5 < bits_per_byte < 9, name


def test_a_failed_compressor_is_a_named_error(monkeypatch):
    def fail(first, second):
        raise OSError("xz of 12 bytes ended with status 1: MemoryError")

    monkeypatch.setattr(baselines, "primed_xz_size", fail)
    with pytest.raises(EvalError, match=r"MemoryError.*baseline_bytes"):
        xz_baseline(TRAIN, HELDOUT)


def test_a_dying_compressor_is_noticed(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(OSError, match="status 1"):
        primed_xz_size(b"a", b"b")


def test_the_budget_keeps_whole_documents():
    assert within([b"aaa", b"bb", b"cccc"], 5) == [b"aaa", b"bb"]
    assert within([b"aaa", b"bb", b"cccc"], 2) == []
    assert within([], 5) == []
