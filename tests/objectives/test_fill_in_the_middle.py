"""Fill in the middle: the orders by hand, how often each comes, and that every document can be read back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_case import documents

from lmworks.objectives.draws import Draws
from lmworks.objectives.fill_in_the_middle import FillInTheMiddleConfig, fill_in_the_middle, rearrange

P, S, M, BOS, EOS = 90, 91, 92, 1, 2
CONFIG = FillInTheMiddleConfig(
    prefix_token_id=P, suffix_token_id=S, middle_token_id=M, fim_rate=1.0, bos_token_id=BOS, eos_token_id=EOS
)


def put_back(ids):
    """The document, and the order it was in; "" for its own."""
    ids = list(ids)
    if P not in ids:
        return ids, ""
    p, s, m = ids.index(P), ids.index(S), ids.index(M)
    end = len(ids) - (ids[-1] == EOS)
    if s == p + 1:  # the middle's border with the prefix is not marked: none is needed to put it back
        return [*ids[:p], *ids[m + 1 : end], *ids[s + 1 : m], *ids[end:]], "spm"
    return [*ids[:p], *ids[p + 1 : s], *ids[m + 1 : end], *ids[s + 1 : m], *ids[end:]], "psm"


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 30), row=st.integers(0, 50), marks=st.tuples(st.booleans(), st.booleans()))
def test_every_document_can_be_put_back(length, row, marks):
    [inner] = documents(length)
    ids = np.array([BOS] * marks[0] + inner.tolist() + [EOS] * marks[1])
    arranged = rearrange(ids, Draws(0, row), CONFIG)
    assert len(arranged) == len(ids) + 3
    assert put_back(arranged)[0] == ids.tolist()
    assert (arranged[0] == BOS) == marks[0]
    assert (arranged[-1] == EOS) == marks[1]


def test_orders_come_as_often_as_configured():
    config = CONFIG.model_copy(update={"fim_rate": 0.6, "fim_spm_rate": 0.25})
    [ids] = documents(40)
    orders = [put_back(rearrange(ids, Draws(0, row), config))[1] for row in range(3000)]
    # A PSM whose prefix is empty reads like an SPM: one cut at the very beginning, 2 of 42 draws.
    ambiguous = 0.45 * (1 - (40 / 41) ** 2)
    for order, share in (("", 0.4), ("spm", 0.15 + ambiguous), ("psm", 0.45 - ambiguous)):
        assert abs(orders.count(order) / 3000 - share) < 0.045


def test_cuts_are_even():
    config = CONFIG.model_copy(update={"fim_spm_rate": 0.0})
    [ids] = documents(5)
    parts = []
    for row in range(6000):
        arranged = rearrange(ids, Draws(0, row), config).tolist()
        s, m = arranged.index(S), arranged.index(M)
        parts.append((s - 1, len(arranged) - m - 1))
    counts = np.zeros((6, 6), int)
    np.add.at(counts, tuple(np.array(parts).T), 1)
    for prefix in range(6):
        for middle in range(6 - prefix):
            expected = 6000 / 36 * (1 if middle == 0 else 2)
            assert abs(counts[prefix, middle] - expected) < 5.5 * expected**0.5


def test_the_batch_predicts_every_token_of_what_was_arranged():
    config = CONFIG.model_copy(update={"fim_rate": 0.0})
    docs = documents(4, 1, 6)
    batch = fill_in_the_middle(docs, Draws(0, 0), config)
    assert batch.input_ids.tolist() == [*docs[0][:-1], *docs[2][:-1]]
    assert batch.targets.tolist() == [*docs[0][1:], *docs[2][1:]]
    assert batch.loss_weights.tolist() == [1.0] * 8
    assert fill_in_the_middle(docs, Draws(0, 0), CONFIG).num_tokens == 8 + 6
