"""Packed rows against a reference that lays the epochs end to end in plain Python."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import DataError
from lmworks.data.shuffle import permutation
from lmworks.data.tokens.packing import PackedRows

EOS = 0


class ListStore:
    def __init__(self, documents):
        self.documents = [np.asarray(d, dtype=np.uint16) for d in documents]

    @property
    def lengths(self):
        return np.asarray([len(d) for d in self.documents], dtype=np.int64)

    def __getitem__(self, index):
        return self.documents[index]


def make_store(sizes):
    """Documents `[EOS, unique tokens…, EOS]`, so that every token tells where it came from."""
    documents, unique = [], 1
    for size in sizes:
        documents.append([EOS, *range(unique, unique + size), EOS])
        unique += size
    return ListStore(documents)


def reference_stream(store, seed, epochs):
    """`(token, target or None, document, place)` of every place of the stream."""
    stream = []
    for epoch in range(epochs):
        for document in permutation(len(store.documents), seed, epoch).tolist():
            ids = store.documents[document].tolist()
            for place, token in enumerate(ids):
                target = ids[place + 1] if place + 1 < len(ids) else None
                stream.append((token, target, (epoch, document), place))
    return stream


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, width=st.integers(1, 9), seed=st.integers(0, 5), start=st.integers(0, 20), count=st.integers(1, 5))
def test_rows_are_the_stream_cut_into_equal_parts(sizes, width, seed, start, count):
    store = make_store(sizes)
    batch = PackedRows(store, width, seed).rows(start, count)
    needed = (start + count) * width
    stream = reference_stream(store, seed, needed // int(store.lengths.sum()) + 1)[start * width : needed]
    assert batch.input_ids.tolist() == [token for token, *_ in stream]
    for place, (_, target, _, _) in enumerate(stream):
        assert batch.loss_weights[place].item() == (0.0 if target is None else 1.0)
        if target is not None:
            assert batch.targets[place].item() == target


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, width=st.integers(1, 9), seed=st.integers(0, 5), count=st.integers(1, 6))
def test_segments_hold_one_document_of_one_row(sizes, width, seed, count):
    store = make_store(sizes)
    batch = PackedRows(store, width, seed).rows(0, count)
    stream = reference_stream(store, seed, count * width // int(store.lengths.sum()) + 1)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == count * width
    for begin, end in pairwise(bounds):
        assert end > begin
        assert begin // width == (end - 1) // width, "a segment never crosses a row"
        assert len({stream[i][2] for i in range(begin, end)}) == 1, "a segment never mixes documents"
        assert [stream[i][3] for i in range(begin, end)] == list(
            range(stream[begin][3], stream[begin][3] + end - begin)
        )
        assert batch.positions[begin:end].tolist() == list(range(end - begin))


@settings(max_examples=30, deadline=None)
@given(
    sizes=sizes,
    width=st.integers(1, 7),
    seed=st.integers(0, 5),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_the_same_rows_come_whatever_the_batches(sizes, width, seed, cuts):
    store = make_store(sizes)
    whole = PackedRows(store, width, seed).rows(0, sum(cuts))
    start, parts = 0, []
    for count in cuts:
        parts.append(PackedRows(store, width, seed).rows(start, count))  # a new object: nothing is remembered
        start += count
    for field in ("input_ids", "positions", "targets", "loss_weights"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(whole, field))


@settings(max_examples=30, deadline=None)
@given(sizes=sizes, seed=st.integers(0, 5))
def test_an_epoch_shows_every_token_once_and_epochs_differ_in_order_only(sizes, seed):
    store = make_store(sizes)
    total = int(store.lengths.sum())
    rows = PackedRows(store, 1, seed)
    everything = sorted(token for document in store.documents for token in document.tolist())
    assert sorted(rows.rows(0, total).input_ids.tolist()) == everything
    assert sorted(rows.rows(total, total).input_ids.tolist()) == everything


def test_epochs_and_seeds_shuffle_differently():
    orders = {tuple(permutation(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_order_is_frozen():
    # A change here would silently break the resuming of every run.
    assert permutation(8, 7, 2).tolist() == [1, 2, 6, 4, 5, 0, 3, 7]


def test_no_documents_is_an_error():
    with pytest.raises(DataError, match="no documents"):
        PackedRows(ListStore([]), 4, 0)
