"""Draws as a function of seed and row, the layout of documents, and rows whose number alone decides about them."""

from functools import partial

import numpy as np
import pytest
import torch
from objective_case import documents

from lmworks.core.errors import DataError
from lmworks.nn.batch import Batch, next_token_document, pack
from lmworks.objectives.arrange import ArrangedRows, documents_of, join, packed
from lmworks.objectives.draws import Draws
from lmworks.objectives.masked_lm import MaskingConfig, mask_documents
from lmworks.objectives.source_target import (
    Seq2SeqBatch,
    SourceTarget,
    for_encoder_decoder,
    prefix_pairs,
    seq2seq_batch,
)

MASKING = MaskingConfig(mask_token_id=4, vocab_size=61)


class Stored:
    """Rows of documents by number."""

    def __init__(self, *rows):
        self._rows = rows

    def rows(self, start, count):
        return pack([(ids, ids, [1.0] * len(ids)) for row in self._rows[start : start + count] for ids in row])


ROWS = Stored(*([documents(9, 1, 14, seed=i), documents(24, seed=i)][i % 2] for i in range(6)))


def test_draws_are_a_function_of_seed_and_row():
    first = Draws(3, 7).uniform(5)
    np.testing.assert_array_equal(first, Draws(3, 7).uniform(5))
    others = [Draws(4, 7), Draws(3, 8), Draws(7, 3), Draws(0, 0), Draws(2**64 - 1, 10**15)]
    assert len({tuple(d.uniform(5)) for d in [Draws(3, 7), *others]}) == 6
    halves = Draws(3, 7)
    np.testing.assert_array_equal(first, np.concatenate([halves.uniform(2), halves.uniform(3)]))


def test_draws_are_these_on_every_machine():
    # Philox is specified (Salmon et al. 2011): a change here would change every run.
    assert Draws(0, 0).uniform(2).tolist() == FIRST_TWO


FIRST_TWO = [0.011546754286331562, 0.24154919656271812]


def test_draws_are_even():
    draws = Draws(0, 0)
    counts = np.bincount(draws.integers(7, 70_000), minlength=7)
    assert abs(counts - 10_000).max() < 500  # five deviations
    assert sorted(draws.order(50)) == list(range(50))
    chosen = np.bincount(np.concatenate([draws.choose(6, 2) for _ in range(6000)]), minlength=6)
    assert abs(chosen - 2000).max() < 200
    assert abs(np.mean([draws.chance(0.3) for _ in range(10_000)]) - 0.3) < 0.025
    assert draws.choose(5, 0).tolist() == []
    assert draws.below(1) == 0


def test_packed_is_pack():
    ids = documents(4, 1, 7)
    triples = [(i, i[::-1], np.linspace(0, 1, len(i))) for i in ids]
    ours = packed(Batch, *zip(*triples, strict=True))
    theirs = pack([(i.tolist(), t.tolist(), w.tolist()) for i, t, w in triples])
    for name, tensor in vars(theirs).items():
        torch.testing.assert_close(getattr(ours, name), tensor, rtol=0, atol=1e-7)
    assert [d.tolist() for d in documents_of(ours)] == [i.tolist() for i in ids]


def test_joined_batches_are_the_batch_of_all():
    pairs = [SourceTarget(*documents(3 + i, 9 - i, seed=i)) for i in range(5)]
    whole = seq2seq_batch(pairs, 1)
    parts = join([seq2seq_batch(pairs[:2], 1), seq2seq_batch([], 1), seq2seq_batch(pairs[2:], 1)])
    assert type(parts) is Seq2SeqBatch
    for name, tensor in vars(whole).items():
        assert torch.equal(getattr(parts, name), tensor), name
        assert getattr(parts, name).dtype == tensor.dtype, name
    assert whole.to("cpu").source_ids.tolist() == whole.source_ids.tolist()


@pytest.mark.parametrize("arrangement", [partial(mask_documents, config=MASKING), for_encoder_decoder(prefix_pairs, 1)])
def test_a_row_is_the_same_in_any_company(arrangement):
    rows = ArrangedRows(ROWS, arrangement, seed=5)
    together = rows.rows(0, 6)
    for split in ([1] * 6, [2, 4], [5, 1]):
        starts = np.cumsum([0, *split])
        parts = join([rows.rows(int(s), n) for s, n in zip(starts, split, strict=False)])
        for name, tensor in vars(together).items():
            assert torch.equal(getattr(parts, name), tensor), name
    assert not torch.equal(ArrangedRows(ROWS, arrangement, seed=6).rows(0, 6).input_ids[:9], together.input_ids[:9])


def test_rows_without_a_target_are_named():
    rows = ArrangedRows(Stored([[7], [8]], [[9], [1, 2, 3]]), for_encoder_decoder(prefix_pairs, 1), seed=0)
    with pytest.raises(DataError, match="rows 0 to 0 hold no document"):
        rows.rows(0, 1)
    assert rows.rows(0, 2).num_tokens > 0


def test_inputs_of_causal_rows_are_the_documents():
    batch = pack([next_token_document([1, 2, 3, 4]), next_token_document([5, 6])])
    assert [d.tolist() for d in documents_of(batch)] == [[1, 2, 3], [5]]
