"""The hashed word model against Kneser-Ney written out with dictionaries, and on text that people wrote."""

import math
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import DataError
from lmworks.data.cleaning.kneser_ney import estimate_discounts
from lmworks.data.cleaning.word_ngrams import WordNgramModel

START, UNKNOWN = "<start>", "<unknown>"
TEXTS = [
    "the cat sat on the mat",
    "The dog ate the cat!",
    "a mat, a cat, a dog 17",
    "…",
    "x",
    "猫坐在垫子上",
    "a cat sat",
]


class SlowModel:
    """Interpolated modified Kneser-Ney by definition: tuples, dictionaries and recursion."""

    def __init__(self, texts, ngram):
        padded = [[START] * (ngram - 1) + words_of(text) for text in texts]
        grams = Counter(tuple(d[i - ngram + 1 : i + 1]) for d in padded for i in range(ngram - 1, len(d)))
        self.ngram, self.counts = ngram, {ngram: dict(grams)}
        for n in range(ngram - 1, 0, -1):
            neighbors, occurrences = defaultdict(set), Counter()
            for gram, count in grams.items():
                neighbors[gram[-n:]].add(gram[-n - 1])
                occurrences[gram[-n:]] += count
            self.counts[n] = {g: occurrences[g] if g[0] == START else len(neighbors[g]) for g in neighbors}
        self.discounts = {n: estimate_discounts(np.array(list(c.values()))) for n, c in self.counts.items()}

    def probability(self, context, word, n=None):
        n = self.ngram if n is None else n
        if n == 0:
            return 1 / (len(self.counts[1]) + 1)
        lower = self.probability(context[1:], word, n - 1)
        seen = {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == context}
        if not seen:
            return lower
        discount = self.discounts[n]
        reserved = sum(discount[min(c, 3)] for c in seen.values())
        count = seen.get(word, 0)
        return (max(0, count - discount[min(count, 3)]) + reserved * lower) / sum(seen.values())

    def perplexity(self, text):
        words = [START] * (self.ngram - 1) + (words_of(text) or [UNKNOWN])
        places = range(self.ngram - 1, len(words))
        bits = [math.log2(self.probability(tuple(words[i - self.ngram + 1 : i]), words[i])) for i in places]
        return 2 ** (-sum(bits) / len(bits))


def words_of(text):
    return re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", re.sub(r"\d", "0", text.casefold()))


@pytest.mark.parametrize("ngram", [1, 2, 3, 5])
def test_it_agrees_with_the_formula(ngram):
    fast, slow = WordNgramModel.fit(TEXTS, ngram), SlowModel(TEXTS, ngram)
    heldout = ["the cat ate a mat", "quite other words", "", "猫在上", "a dog 42", "The cat, sat: on the mat.", "x"]
    expected = [slow.perplexity(text) for text in heldout]
    np.testing.assert_allclose(fast.perplexities(heldout), expected, rtol=1e-10)
    np.testing.assert_allclose([fast.perplexities([text])[0] for text in heldout], expected, rtol=1e-10)


def test_a_single_word_is_what_the_closed_form_says():
    # Four words, all different: too few to estimate from, so each count gives up one half. p(a) = ½/4 + ½·1/5.
    model = WordNgramModel.fit(["a b c d"], 1)
    known, unknown = 0.5 / 4 + 0.5 / 5, 0.5 / 5
    np.testing.assert_allclose(
        model.perplexities(["a", "z", "a z"]), [1 / known, 1 / unknown, (known * unknown) ** -0.5]
    )
    assert 4 * known + unknown == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc ", max_size=12), min_size=1, max_size=5), st.text("abcd ", max_size=4), st.integers(1, 5))
def test_probabilities_sum_to_one_after_any_context(texts, context, ngram):
    vocabulary = sorted({word for text in texts for word in text.split()})
    if not vocabulary:
        return
    model = WordNgramModel.fit(texts, ngram)
    assert model.vocabulary == len(vocabulary)
    before = context.split()
    head = math.log(model.perplexities([" ".join(before)])[0]) * len(before)
    whole = [
        math.log(p) * (len(before) + 1)
        for p in model.perplexities([" ".join([*before, w]) for w in [*vocabulary, "zz"]])
    ]
    assert sum(math.exp(head - cost) for cost in whole) == pytest.approx(1.0)


def test_shuffled_words_are_far_stranger_than_text():
    from pydoc_data.topics import topics

    texts = [" ".join(text.split()) for _, text in sorted(topics.items()) if len(text) > 1500]
    held_out = texts[::5]
    model = WordNgramModel.fit([text for i, text in enumerate(texts) if i % 5], 3)
    shuffled = [" ".join(random.Random(0).sample(text.split(), len(text.split()))) for text in held_out]
    real, mixed = model.perplexities(held_out), model.perplexities(shuffled)
    assert (mixed > 1.5 * real).all()
    assert np.median(mixed / real) > 3
    np.testing.assert_allclose(model.perplexities([text.replace(" ", "\n  ") for text in held_out]), real)


def test_nothing_to_learn_from_is_named():
    with pytest.raises(DataError, match="no word"):
        WordNgramModel.fit(["", "…"], 3)
    assert WordNgramModel.fit(["a"], 5).perplexities([]).tolist() == []
