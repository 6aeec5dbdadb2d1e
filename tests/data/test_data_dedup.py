"""Planted duplicates are found, whatever the order; near copies never stand on both sides of the split."""

import itertools
import random

import numpy as np
import pytest

from lmworks.core.errors import DataError
from lmworks.data.cleaning.normalize import divide
from lmworks.data.corpus.split import contained, hold_out, overlapping
from lmworks.data.deduplication.fingerprints import DedupConfig, exact_key, fingerprint, minhash
from lmworks.data.deduplication.groups import choose, find_groups
from lmworks.data.shingles import MAX_N, Shingles
from lmworks.data.shuffle import mix

WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def essay(seed, words=400):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def altered(text, seed, changes):
    words = text.split()
    for place in random.Random(seed).sample(range(len(words)), changes):
        words[place] = "changed"
    return " ".join(words)


def groups_of(texts, **config):
    config = DedupConfig(**config)
    return find_groups(fingerprint(texts, config), config), config


def kept_of(groups, texts, **config):
    """Numbers of the texts that stay; of each dropped one, who stays and why."""
    kept, winners = choose(groups, fingerprint(texts, DedupConfig()), DedupConfig(**config))
    why = {n: "exact" if groups.exact[n] == groups.exact[winners[n]] else "near" for n in range(len(texts))}
    return np.flatnonzero(kept).tolist(), {n: (int(winners[n]), why[n]) for n in np.flatnonzero(~kept).tolist()}


def keys_of(names):
    return np.frombuffer(b"".join(map(exact_key, names)), "<u8").reshape(-1, 2)


def moved(texts, held_out, max_overlap):
    training = [text for text, held in zip(texts, held_out, strict=True) if not held]
    back = np.zeros(len(texts), bool)
    held = [text for text, out in zip(texts, held_out, strict=True) if out]
    back[held_out] = overlapping(held, lambda grams: contained(grams, training), max_overlap)
    return back


TEXTS = [
    *(essay(seed) for seed in range(40)),
    essay(0).upper(),  # 40: exact, but for case
    essay(1).replace(" ", "\n "),  # 41: exact, but for white space
    altered(essay(2), 0, 3),  # 42: near
    altered(altered(essay(2), 0, 3), 1, 1),  # 43: near
    essay(3) + " " + essay(99, 6),  # 44: near and longer
    altered(essay(4), 0, 200),  # 45: another text by now
]


def test_planted_duplicates_are_grouped_and_nothing_else():
    groups, _ = groups_of(TEXTS)
    expected = list(range(len(TEXTS)))
    for copy, original in ((40, 0), (41, 1), (42, 2), (43, 2), (44, 3)):
        expected[copy] = original
    assert groups.near.tolist() == expected
    assert groups.exact.tolist()[40:] == [0, 1, 42, 43, 44, 45]


@pytest.mark.parametrize("seed", range(3))
def test_groups_do_not_depend_on_the_order(seed):
    order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = [TEXTS[n] for n in order]
    groups, _ = groups_of(shuffled)
    straight, _ = groups_of(TEXTS)
    assert groups.keys.tolist() == straight.keys[order].tolist()
    kept, _ = kept_of(groups, shuffled)
    kept_straight, _ = kept_of(straight, TEXTS)
    assert {shuffled[n] for n in kept} == {TEXTS[n] for n in kept_straight}


def test_longest_or_first_is_kept():
    groups, _ = groups_of(TEXTS)
    kept, dropped = kept_of(groups, TEXTS)
    assert dropped[3] == (44, "near")
    assert {dropped[n][1] for n in (0, 40) if n in dropped} == {"exact"}
    assert len(kept) + len(dropped) == len(TEXTS)
    kept, dropped = kept_of(groups, TEXTS, keep="first")
    assert kept == [*range(40), 45]
    assert dropped[44] == (3, "near")


def test_which_of_equal_texts_stays_follows_from_their_names():
    texts = [essay(0), essay(1), essay(0), essay(0)]
    names = np.asarray([7, 1, 3, 9], np.uint64)
    for order in itertools.permutations(range(4)):
        given = [texts[n] for n in order]
        groups, config = groups_of(given)
        kept, _ = choose(groups, fingerprint(given, config), config, names[list(order)])
        assert {order[n] for n in np.flatnonzero(kept)} == {1, 2}


def test_near_and_exact_can_be_switched_off():
    groups, _ = groups_of(TEXTS)
    assert len(kept_of(groups, TEXTS, near=False)[0]) == len(TEXTS) - 2
    assert len(kept_of(groups, TEXTS, near=False, exact=False)[0]) == len(TEXTS)


def test_chinese_near_copies_are_found_by_characters():
    rng = random.Random(0)
    text = "".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(200))
    groups, _ = groups_of([text, text[:100] + "改" + text[101:], text[::-1]])
    assert groups.near.tolist() == [0, 0, 2]


def test_the_ngram_of_no_words_is_that_of_nothing_beside_it():
    for n in (1, 5, MAX_N):
        for texts in (["one two", "…"], ["…", "one two"], ["…"]):
            grams, counts = Shingles(texts).ngrams(n)
            assert grams[np.cumsum(counts)[texts.index("…")] - 1] == mix(np.zeros(1, np.uint64))[0]


def test_texts_without_words_are_not_duplicates_of_one_another():
    groups, _ = groups_of(["!!!", "???", "!!!", "word"])
    assert groups.near.tolist() == [0, 1, 0, 3]


def test_signatures_estimate_the_jaccard_similarity():
    texts = [essay(7), altered(essay(7), 1, 30)]
    shingles = Shingles(texts)
    grams = [set(shingles.ngrams(5, n, n + 1)[0].tolist()) for n in (0, 1)]
    exact = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    signatures = minhash(shingles, DedupConfig(bands=64, rows=31))
    assert (signatures[:, 0] == signatures[:, 1]).mean() == pytest.approx(exact, abs=0.04)


@pytest.mark.parametrize("before", [100, 1000, 2500, 3700])
@pytest.mark.parametrize("gap", [" ", "\n\n"])
def test_copies_of_a_long_text_are_found_though_they_begin_differently(before, gap):
    sentences = essay(0, 12_000).split()
    text = gap.join(". ".join(sentences[n : n + 10]) for n in range(0, len(sentences), 10))
    one, other = divide(text, 5000), divide(f"{'x y ' * (before // 4)}{gap}{text}", 5000)
    groups, _ = groups_of([*one, *other])
    assert sum(leader < len(one) for leader in groups.near[len(one) :].tolist()) >= len(one) - 3


def test_ngrams_are_those_of_each_text_alone():
    shingles = Shingles(["a b c d", "a b", "", "c d a b"])
    hashes, counts = shingles.ngrams(2)
    assert counts.tolist() == [3, 1, 1, 3]
    assert hashes[0] == hashes[3] == hashes[7]  # "a b" in three texts
    assert hashes[2] == hashes[5]  # "c d" in two
    part, _ = shingles.ngrams(2, 3, 4)
    assert part.tolist() == hashes[5:].tolist()


def test_exact_keys_are_blind_to_form_only():
    assert exact_key("A  b\nC") == exact_key("a B c")
    assert exact_key("ｆｕｌｌ") == exact_key("full")
    assert exact_key("\ufeffcafe\u0301 no\u00adir\u200b\r\n") == exact_key("CAFÉ Noir")
    assert exact_key("x = a + b") != exact_key("x = a - b")


def test_near_copies_never_straddle_the_split():
    texts = [altered(essay(n), k, 1) for n in range(60) for k in range(3)]
    groups, _ = groups_of(texts, near=False, exact=False)
    for seed in range(5):
        held_out = hold_out(groups.keys, 0.3, seed).reshape(60, 3)
        assert (held_out.all(axis=1) | ~held_out.any(axis=1)).all()
        assert 0.1 < held_out.mean() < 0.5


def test_looser_copies_that_hashing_may_miss_end_up_in_training():
    texts = [altered(essay(n, 120), k, 4) for n in range(40) for k in range(2)]  # Jaccard similarity about 0.5
    groups, _ = groups_of(texts)
    assert len(set(groups.near.tolist())) > 60, "most are too different to be grouped"
    held_out = hold_out(groups.keys, 0.4, 0)
    assert (held_out[::2] != held_out[1::2]).any()
    held_out &= ~moved(texts, held_out, 0.2)
    assert (held_out[::2] == held_out[1::2]).all()
    assert held_out.any()


def test_the_split_is_stable_and_has_two_sides():
    keys = keys_of([f"k{n}" for n in range(200)])
    held_out = hold_out(keys, 0.1, 0)
    assert hold_out(keys[:100], 0.1, 0).tolist() == held_out[:100].tolist()
    assert hold_out(keys_of(["a", "b"]), 0.001, 0).sum() == 1
    assert hold_out(keys_of(["a", "b"]), 0.5, 0).sum() == 1
    assert not hold_out(keys, 0.0, 0).any()
    assert hold_out(keys, 0.1, 1).tolist() != held_out.tolist()
    with pytest.raises(DataError, match="1 documents cannot be divided"):
        hold_out(keys_of(["a", "a"]), 0.1, 0)


def test_held_out_texts_that_copy_training_text_are_moved():
    texts = [
        essay(0, 120),  # training
        essay(1, 30) + " " + essay(0, 120),  # held out, mostly a copy
        essay(2, 120),  # held out, its own
        essay(3, 200) + " " + " ".join(essay(0, 120).split()[:20]),  # held out, a short quotation
        essay(1, 30) + " " + essay(4, 60),  # held out, copies the second, which moves
    ]
    held_out = np.array([False, True, True, True, True])
    assert moved(texts, held_out, 0.2).tolist() == [False, True, False, False, True]
    assert not moved(texts, held_out, 1.0).any()
