"""Byte-pair encoding written out against the library's."""

from collections import Counter
from functools import lru_cache
from pathlib import Path

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from lmworks.tokenization.byte_alphabet import BYTE_OF
from lmworks.tokenization.reference_bpe import merge, train

REAL = Path(__file__).read_text(encoding="utf-8")
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
FEW = st.text("abc 中", max_size=60)


@lru_cache(maxsize=2)
def library(text, vocab_size):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(BYTE_OF), min_frequency=2, show_progress=False
    )
    backend.train_from_iterator([text], trainer)
    return backend


@lru_cache(maxsize=2)
def learned(text, vocab_size):
    return train(Counter(words(text)), vocab_size)


def words(text):
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [bytes(BYTE_OF[c] for c in piece).decode() for piece, _ in cut.pre_tokenize_str(text)]


def same(learned_from, read, vocab_size):
    theirs = library(learned_from, vocab_size)
    ours = learned(learned_from, vocab_size)
    ids = ours.encode(words(read))
    assert ids == theirs.encode(read).ids
    assert ours.decode(ids) == read
    assert len(ours.merges) == theirs.get_vocab_size() - 256


def test_ids_on_real_text_are_the_librarys():
    same(REAL, REAL, 600)


@settings(max_examples=60, deadline=None)
@given(learned_from=st.one_of(ANY, FEW), read=st.one_of(ANY, FEW))
def test_ids_are_the_librarys(learned_from, read):
    same(learned_from, read, 300)


@settings(max_examples=60, deadline=None)
@given(read=ANY)
def test_unseen_text_is_read_alike(read):
    same(REAL, read, 400)


def test_overlapping_pairs_merge_from_the_left():
    assert merge((1, 1, 1, 2, 1, 1), (1, 1), 3) == (3, 1, 2, 3)
