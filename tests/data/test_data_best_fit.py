"""Rows of whole documents, against best-fit decreasing in plain Python."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import DataError
from lmworks.data.tokens.best_fit import BestFitRows, best_fit_decreasing


class Store:
    """Document `d` holds the ids 100 * d, 100 * d + 1, …"""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths, np.int64)

    def __getitem__(self, index):
        return np.arange(100 * index, 100 * index + self.lengths[index]).astype(np.uint16)


def fitted_one_by_one(lengths, width):
    """How full the rows are; which of two rows with equal room is taken does not show in it."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= width]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return Counter(map(sum, rows))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_rows_are_those_of_best_fit_decreasing(data, width):
    lengths = data.draw(st.lists(st.integers(1, width), max_size=60))
    row_of = best_fit_decreasing(np.bincount(lengths, minlength=width + 1))
    rows = {}
    for length, row in zip(sorted(lengths, reverse=True), row_of.tolist(), strict=True):
        rows.setdefault(row, []).append(length)
    assert sorted(rows) == list(range(len(rows)))
    assert Counter(map(sum, rows.values())) == fitted_one_by_one(lengths, width)


lengths = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


@settings(max_examples=80, deadline=None)
@given(lengths, st.integers(1, 20), st.integers(0, 5))
def test_every_epoch_has_each_token_once_and_cuts_long_documents_alone(lengths, width, seed):
    rows = BestFitRows(Store(lengths), width, seed)
    per_epoch = int(rows.rows_per_epoch)
    assert per_epoch >= sum(lengths) / width
    everything = [100 * d + i for d, length in enumerate(lengths) for i in range(length)]
    for epoch in range(3):
        seen = []
        for row in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = rows.rows(row, 1)
            assert 0 < batch.num_tokens <= width
            seen += batch.input_ids.tolist()
            documents = []
            for begin, end in pairwise(batch.cu_seqlens.tolist()):
                ids = batch.input_ids[begin:end].tolist()
                document, place = divmod(ids[0], 100)
                documents.append(str(document))
                assert ids == list(range(ids[0], ids[0] + len(ids)))
                assert batch.positions[begin:end].tolist() == list(range(len(ids)))
                assert place % width == 0, "whole, but for what is longer than a row"
                assert place + len(ids) == lengths[document] or len(ids) == width
                last = place + len(ids) == lengths[document]
                assert batch.loss_weights[begin:end].tolist() == [1.0] * (len(ids) - 1) + [0.0 if last else 1.0]
                assert batch.targets[begin : end - last].tolist() == list(range(ids[0] + 1, ids[-1] + 2 - last))
            assert rows.documents(row) == documents
        assert sorted(seen) == everything


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 9), st.integers(0, 5), st.integers(0, 40), st.lists(st.integers(1, 4), min_size=1))
def test_the_same_rows_come_whatever_the_batches(lengths, width, seed, start, cuts):
    whole = BestFitRows(Store(lengths), width, seed).rows(start, sum(cuts))
    parts = []
    for count in cuts:
        parts.append(BestFitRows(Store(lengths), width, seed).rows(start, count))
        start += count
    for field in ("input_ids", "positions", "targets", "loss_weights"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(whole, field))


def test_epochs_and_seeds_differ():
    rows = {
        tuple(BestFitRows(Store([7] * 6 + [3] * 6), 10, seed).rows(epoch * 6, 6).input_ids.tolist())
        for seed in (0, 1) for epoch in (0, 1)
    }  # fmt: skip
    assert len(rows) == 4


def test_few_rows_are_left_with_room():
    lengths = np.random.default_rng(0).lognormal(5, 1, 5000).astype(np.int64).clip(1, 3000)
    rows = BestFitRows(Store(lengths), 1024, 0)
    assert lengths.sum() / (rows.rows_per_epoch * 1024) > 0.995


def test_no_documents_is_an_error():
    with pytest.raises(DataError, match="no documents"):
        BestFitRows(Store([]), 4, 0)
