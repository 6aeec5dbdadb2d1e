"""Addresses, SimHash, lines and paragraphs, embeddings: each finds what was planted, and a group can be looked at."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import DataError
from lmworks.data.deduplication.components import equal, joined_by, joined_in_buckets, merged
from lmworks.data.deduplication.fingerprints import DedupConfig, Fingerprints, fingerprint
from lmworks.data.deduplication.groups import choose, duplicates, find_groups
from lmworks.data.deduplication.pieces import chosen, find_pieces, repeated
from lmworks.data.deduplication.semantic import semantic_duplicates
from lmworks.data.deduplication.simhash import simhashes, similar
from lmworks.data.deduplication.substrings import without
from lmworks.data.deduplication.urls import normalize_url, url_keys
from lmworks.data.shingles import Shingles


def essay(seed, words=300):
    rng = random.Random(seed)
    return " ".join(f"{rng.choice('bdgkmnprst')}{rng.choice('aeiou')}{rng.randrange(100)}" for _ in range(words))


def altered(text, seed, changes):
    words = text.split()
    for place in random.Random(seed).sample(range(len(words)), changes):
        words[place] = "changed"
    return " ".join(words)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*(st.integers(0, n - 1),) * 2)))))
def test_parts_are_those_of_a_search(case):
    count, pairs = case
    leaders = list(range(count))
    for one, other in pairs:
        low, high = sorted((leaders[one], leaders[other]))
        leaders = [low if leader == high else leader for leader in leaders]
    given_pairs = np.asarray(pairs, np.int64).reshape(-1, 2).T
    assert joined_by(np.arange(count), given_pairs).tolist() == leaders


def test_partitions_merge_and_equal_rows_share_a_leader():
    assert equal(np.asarray([[1, 2], [1, 3], [1, 2]], np.uint64)).tolist() == [0, 1, 0]
    assert equal(np.empty((0, 2), np.uint64)).tolist() == []
    assert merged(4, np.asarray([0, 0, 2, 3]), np.asarray([0, 1, 1, 3])).tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://www.Example.org/a/", "https://example.org/a"),
        ("https://example.org:443/a?b=1&a=2#top", "https://example.org/a?a=2&b=1"),
        ("https://example.org/a?utm_source=x&gclid=1", "example.org/a"),
        (" https://example.org ", "http://example.org/"),
        ("https://münchen.example./straße", "https://xn--mnchen-3ya.example/stra%C3%9Fe"),
        ("https://example.org/%7eann%2fb c?fbclid=1&q=%7E&ttclid=2", "https://example.org/~ann%2Fb%20c?q=~"),
    ],
)
def test_spellings_of_one_address(one, other):
    assert normalize_url(one) == normalize_url(other)
    assert url_keys([one]) == url_keys([other])


def test_other_addresses_stay_apart():
    urls = ["https://example.org/a", "https://example.org/A", "https://example.org:8080/a", "https://a.example.org/a",
            "https://example.org/a?b=1", "http://[broken", "http://x:port/", "https://example.org/#/a",
            "https://example.org/#/b", "https://example.org/#!b", "https://example.org/a%2Fb", "https://example.org/a/b",
            "http://\ud800.org/\ud800?\ud800=\ud800", "https://example.org/%"]  # fmt: skip
    assert len(set(url_keys(urls).tolist())) == len(urls)
    assert url_keys(["", "  "]).tolist() == [0, 0]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 6), st.randoms())
def test_close_hashes_are_those_of_a_search(values, distance, rng):
    for _ in range(20):  # neighbours of those there are
        flipped = rng.sample(range(64), rng.randrange(distance + 2))
        values.append(rng.choice(values) ^ sum(1 << bit for bit in flipped))
    hashes = np.asarray(values, np.uint64)
    near = [
        (a, b)
        for a, b in itertools.combinations(range(len(values)), 2)
        if (values[a] ^ values[b]).bit_count() <= distance
    ]
    expected = joined_by(np.arange(len(values)), np.asarray(near, np.int64).reshape(-1, 2).T)
    assert similar(hashes, distance).tolist() == expected.tolist()


def test_simhash_is_near_for_near_texts_only():
    texts = [essay(0), altered(essay(0), 1, 2), essay(1)]
    hashes = simhashes(Shingles(texts), 1).tolist()
    assert (hashes[0] ^ hashes[1]).bit_count() < 12 < (hashes[0] ^ hashes[2]).bit_count()


def test_in_a_bucket_all_pairs_are_looked_at():
    """Sixty signatures share a band; two that are alike elsewhere meet there alone, and neither is the first."""
    config = DedupConfig()
    signatures = np.random.default_rng(0).integers(0, 1 << 32, (config.bands, 60, config.rows), np.uint32)
    signatures[0] = 1
    signatures[1:, 50] = signatures[1:, 20]
    signatures[1:, 50, 0] ^= 1
    none = np.zeros(60, np.uint64)
    keys = np.stack([np.arange(60, dtype=np.uint64), none], axis=1)
    length = np.full(60, 100)
    groups = find_groups(Fingerprints(keys, none, length, length, signatures, none, none), config)
    assert groups.near.tolist() == [20 if n == 50 else n for n in range(60)]


@pytest.mark.parametrize("neighbors", [3, None])
def test_what_is_alike_within_a_bucket_is_joined(neighbors):
    """Numbers that differ by one; in a bucket of 40 with three neighbors each a chain in the order holds together."""
    things = np.asarray([*range(20), *range(30, 50)])
    leaders = joined_in_buckets(
        np.arange(40), np.zeros(40, np.uint64), lambda pairs: abs(np.diff(things[pairs], axis=0)[0]) == 1, neighbors
    )
    assert leaders.tolist() == [0] * 20 + [20] * 20


def test_a_dense_cloud_of_simhashes_is_one_group_without_looking_at_all_pairs():
    rng = random.Random(0)
    center = rng.getrandbits(64)
    hashes = [center] + [center ^ sum(1 << bit for bit in rng.sample(range(64), 3)) for _ in range(20_000)]
    assert not similar(np.asarray(hashes, np.uint64), 3).any()


def test_modes_join_and_each_member_says_why():
    texts = [essay(0), essay(0).upper(), altered(essay(0), 1, 3), essay(1), essay(2), essay(3), essay(4)]
    urls = ["", "", "", "https://a.org/x", "http://www.a.org/x/", "", "https://b.org"]
    config = DedupConfig(url=True, keep="first", simhash_distance=3)
    prints = fingerprint(texts, config, urls=urls)
    groups = find_groups(prints, config)
    kept, winners = choose(groups, prints, config)
    assert kept.tolist() == [True, False, False, True, False, True, True]
    found = list(duplicates(groups, prints, winners, config))
    assert [group.kept for group in found] == [0, 3]
    assert [member.reason for member in found[0].members] == [None, "exact", "minhash"]
    assert [member.reason for member in found[1].members] == [None, "url"]
    assert found[0].members[1].similarity == 1.0
    assert 0.7 <= found[0].members[2].similarity < 1.0
    assert len({tuple(key) for key in groups.keys.tolist()}) == 4, "who shares a group never straddles the split"
    silent = DedupConfig(keep="first")
    prints = fingerprint(texts, silent, urls=urls)
    assert choose(find_groups(prints, silent), prints, silent)[0].sum() == 5


def test_simhash_alone_drops_close_copies_and_links_chains():
    words = essay(0, 3000).split()
    texts = [" ".join([*words[:n], *words[n + 1 :]]) for n in (5, 900, 1800, 2700)]
    config = DedupConfig(near=False, ngram=1, simhash_distance=14, keep="first")
    prints = fingerprint(texts, config)
    groups = find_groups(prints, config)
    _, winners = choose(groups, prints, config)
    assert winners.tolist() == [0, 0, 0, 0]
    (group,) = duplicates(groups, prints, winners, config)
    assert {member.reason for member in group.members} == {None, "simhash"}


def test_no_texts_make_no_groups():
    config = DedupConfig(url=True, simhash_distance=3)
    prints = fingerprint([], config, urls=[])
    groups = find_groups(prints, config)
    assert choose(groups, prints, config)[0].tolist() == []
    assert list(duplicates(groups, prints, np.empty(0, np.int64), config)) == []


NOTICE = "Subscribe to our newsletter today!"
PAGES = [f"One text.\n{NOTICE}\nIts end.", f"{NOTICE.upper()} \n\nAnother text.", f"The last.\n{NOTICE}"]


@pytest.mark.parametrize(
    ("copies", "least", "expected"),
    [
        ("all", 2, PAGES),
        ("first", 2, [PAGES[0], "\nAnother text.", "The last.\n"]),
        ("none", 2, ["One text.\nIts end.", "\nAnother text.", "The last.\n"]),
        ("none", 4, PAGES),
    ],
)
def test_lines_that_repeat_go(copies, least, expected):
    pieces = find_pieces(PAGES, "line", 20)
    assert without(PAGES, chosen(pieces.spans, repeated(pieces.keys, copies, least))) == expected


def test_paragraphs_that_repeat_go_with_the_blank_line_after():
    texts = ["First one,\nof two lines.\n\nSecond.\n \nThird.", "Second.\n\nfirst  one, of two lines.\n\n\nFourth.\n"]
    pieces = find_pieces(texts, "paragraph")
    found = [texts[t][b:e] for t, b, e in zip(pieces.spans.texts, pieces.spans.begins, pieces.spans.ends, strict=True)]
    assert [piece.strip() for piece in found[:3]] == ["First one,\nof two lines.", "Second.", "Third."]
    left = without(texts, chosen(pieces.spans, repeated(pieces.keys, "first")))
    assert left[0] == texts[0]
    assert left[1].strip() == "Fourth."


def test_what_says_the_same_is_dropped_and_has_a_kept_text_close_by():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, 32))
    copies = np.repeat(centers, 5, axis=0) + rng.normal(size=(200, 32)) * 0.05
    found = semantic_duplicates(copies * rng.uniform(0.1, 9, (200, 1)), 0.95, clusters=4, keep="first")
    assert np.flatnonzero(found.kept).tolist() == list(range(0, 200, 5))
    assert found.winners.tolist() == [n - n % 5 for n in range(200)]
    assert (found.similarity >= 0.95).all()
    assert found.kept[found.winners].all()


@pytest.mark.parametrize("keep", ["hard", "easy", "first"])
def test_few_texts_are_all_compared(keep):
    """As by taking them one by one: nothing that is kept is close to another that is."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(1500, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = semantic_duplicates(vectors, 0.9, keep=keep)
    cosine = vectors[found.kept] @ vectors[found.kept].T - 2 * np.eye(int(found.kept.sum()))
    assert cosine.max() < 0.9
    assert 100 < found.kept.sum() < 1400
    dropped = np.flatnonzero(~found.kept)
    assert found.similarity[dropped] == pytest.approx((vectors[dropped] * vectors[found.winners[dropped]]).sum(axis=1))
    assert (found.similarity[dropped] >= 0.9).all()
    assert found.kept[found.winners].all()


def test_whom_to_keep_is_the_caller_s_choice():
    turned = np.asarray([[1.0, angle] for angle in (0.0, 0.02, 0.1)])
    assert semantic_duplicates(turned, 0.9, keep="hard").winners.tolist() == [2, 2, 2]
    assert semantic_duplicates(turned, 0.9, keep="easy").winners.tolist() == [1, 1, 1]


def test_bad_embeddings_are_named():
    with pytest.raises(DataError, match="embedding 1 has length 0"):
        semantic_duplicates(np.asarray([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(DataError, match="no table"):
        semantic_duplicates(np.ones(3))
    with pytest.raises(DataError, match="threshold 2"):
        semantic_duplicates(np.ones((2, 2)), 2.0)
    assert semantic_duplicates(np.empty((0, 4))).kept.tolist() == []
