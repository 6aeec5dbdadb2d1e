"""The packed, sorted, vectorized byte model against the formula written out with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.data.cleaning.kneser_ney import estimate_discounts
from lmworks.evals.byte_ngram import START, ByteNgramModel, pack

DOCUMENTS = [b"the cat sat on the mat", b"the dog ate the cat", b"a mat, a cat, a dog\x00\xff", b"", b"x"]


class SlowModel:
    """Interpolated modified Kneser-Ney by definition: tuples, dictionaries and recursion."""

    def __init__(self, documents, order):
        padded = [[START] * order + list(document) for document in documents]
        grams = Counter(tuple(d[i - order : i + 1]) for d in padded for i in range(order, len(d)))
        self.order, self.counts = order, {order: dict(grams)}
        for k in range(order - 1, -1, -1):
            neighbors, occurrences = defaultdict(set), Counter()
            for gram, count in grams.items():
                neighbors[gram[order - k :]].add(gram[order - k - 1])
                occurrences[gram[order - k :]] += count
            self.counts[k] = {g: occurrences[g] if g[0] == START else len(neighbors[g]) for g in neighbors}
        self.discounts = {
            k: estimate_discounts(np.array(list(c.values()))) if k else np.array([0, 0.5, 0.5, 0.5])
            for k, c in self.counts.items()
        }

    def probability(self, context, byte, k=None):
        k = self.order if k is None else k
        lower = 1 / 256 if k == 0 else self.probability(context[1:], byte, k - 1)
        seen = {g[-1]: c for g, c in self.counts[k].items() if g[:-1] == context}
        if not seen:
            return lower
        discount = self.discounts[k]
        reserved = sum(discount[min(c, 3)] for c in seen.values())
        count = seen.get(byte, 0)
        return (max(0, count - discount[min(count, 3)]) + reserved * lower) / sum(seen.values())

    def log2_probabilities(self, document):
        symbols = [START] * self.order + list(document)
        places = range(self.order, len(symbols))
        return [math.log2(self.probability(tuple(symbols[i - self.order : i]), symbols[i])) for i in places]


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5, 6])
def test_it_agrees_with_the_formula(order):
    fast, slow = ByteNgramModel(DOCUMENTS, order), SlowModel(DOCUMENTS, order)
    heldout = [b"the mat ate a dog", b"zzz\x00", b"", b"the cat sat on the mat"]
    expected = [p for document in heldout for p in slow.log2_probabilities(document)]
    np.testing.assert_allclose(fast.log2_probabilities(heldout), expected, rtol=1e-10)
    per_document = [-sum(slow.log2_probabilities(document)) for document in heldout]
    np.testing.assert_allclose(fast.bits(heldout), per_document, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=6).filter(any),
    st.binary(max_size=8),
    st.integers(0, 6),
)
def test_probabilities_sum_to_one_after_any_context(documents, context, order):
    distribution = ByteNgramModel(documents, order).distribution(context)
    assert distribution.sum() == pytest.approx(1, abs=1e-9)
    assert (distribution > 0).all()


def test_documents_do_not_see_each_other():
    model = ByteNgramModel(DOCUMENTS, 5)
    together, apart = model.bits([b"the cat", b"the dog"]), [model.bits([d])[0] for d in (b"the cat", b"the dog")]
    np.testing.assert_allclose(together, apart)
    starts = ByteNgramModel([b"ab", b"ab", b"ab"], 3).distribution(b"")
    assert starts.argmax() == ord("a"), "a document's head is predicted from the heads of other documents"
    assert ByteNgramModel([b"ab", b"ab", b"ab"], 3).distribution(b"ab")[ord("a")] < 0.3, "b is never followed by a"


def test_more_context_and_more_text_help():
    generator = np.random.default_rng(0)
    words = [bytes(generator.integers(97, 123, 5)) for _ in range(60)]
    text = [b" ".join(words[i] for i in generator.integers(0, 60, 30)) for _ in range(200)]
    train, heldout = text[:180], text[180:]
    costs = [ByteNgramModel(train, order).bits(heldout).sum() for order in (0, 1, 2, 4)]
    assert costs == sorted(costs, reverse=True)
    assert ByteNgramModel(train, 4).bits(heldout).sum() < ByteNgramModel(train[:20], 4).bits(heldout).sum()
    # Six letters or spaces a word; choosing one of 60 words takes log2(60) bits, which no model can beat by much.
    assert costs[-1] / sum(map(len, heldout)) == pytest.approx(math.log2(60) / 6, rel=0.1)


def test_packing_puts_the_oldest_symbol_first():
    packed = pack([b"ab", b"", b"c"], 2)
    unpacked = [[int(p) >> 18, int(p) >> 9 & 511, int(p) & 511] for p in packed]
    assert unpacked == [[START, START, 97], [START, 97, 98], [START, START, 99]]


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="order 7 is not between 0 and 6"):
        ByteNgramModel([b"a"], 7)
    with pytest.raises(ValueError, match="no training byte"):
        ByteNgramModel([b"", b""], 2)
