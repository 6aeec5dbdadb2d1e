"""Groups of exact and near duplicates, which text of each is kept, and the groups to look at.

Candidates are texts that agree in all rows of a band, 14 bands of 8 rows over 5-grams as in FineWeb (Penedo et al.
2024), and every candidate pair is checked against a similarity threshold. Groups do not depend on the order of the
texts. Knows neither files nor splits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmworks.data.deduplication.components import equal, joined_in_buckets, merged
from lmworks.data.deduplication.fingerprints import DedupConfig, Fingerprints
from lmworks.data.deduplication.simhash import differing_bits, similar
from lmworks.data.shuffle import mix

_PAIRS_AT_ONCE = 1 << 16
_NEIGHBORS = 64
"""Texts of a bucket that each is compared with, beside the first; all of them in a bucket of up to so many."""

Reason = Literal["exact", "url", "minhash", "simhash", "chain"]
"""Why a text is in a group: it equals the kept one, has its address, is like it, or is like one that is like it."""


@dataclass(frozen=True)
class Groups:
    """The outcome: texts fall into groups, exact ones inside near ones."""

    exact: NDArray[np.int64]
    """[texts] number of the first text with the same key."""
    near: NDArray[np.int64]
    """[texts] number of the first text in the same group of near duplicates."""
    keys: NDArray[np.uint64]
    """[texts, 2] a name of each text's group, all modes together, that does not depend on the texts' order."""
    url: NDArray[np.int64]
    """[texts] number of the first text with the same address; its own where that is not looked at."""
    simhash: NDArray[np.int64]
    """[texts] number of the first text in the same group by SimHash; its own where that is not looked at."""


@dataclass(frozen=True)
class Member:
    """One text of a group."""

    text: int
    """Its number."""
    similarity: float
    """Estimated Jaccard similarity of its n-grams to those of the kept text."""
    reason: Reason | None
    """None of the kept text itself."""


@dataclass(frozen=True)
class Duplicates:
    """A group with the text of it that stays."""

    kept: int
    members: tuple[Member, ...]
    """In the order of the texts, the kept one included."""


def find_groups(texts: Fingerprints, config: DedupConfig) -> Groups:
    """Group equal and similar texts.

    Args:
        texts: their fingerprints.
        config: similarity, banding, `url` and `simhash_distance`; `exact`, `near` and `keep` are not looked at.
    """
    count = len(texts)
    own = np.arange(count)
    exact = equal(texts.keys)
    order = np.lexsort((own, texts.keys[:, 1], texts.keys[:, 0]))
    canonical = order[exact[order] == order]  # one of each key, in the order of keys
    worded = canonical[texts.words[canonical] > 0]
    near = exact.copy()
    leaders = _link(texts.signatures, worded, config)
    roots = np.full(len(worded), count, np.int64)
    np.minimum.at(roots, leaders, worded)
    near[worded] = roots[leaders]
    near = near[exact]
    url = simhash = own
    if config.url:
        url = np.where(texts.urls == 0, own, equal(texts.urls))
    if config.simhash_distance is not None:
        simhash = own.copy()
        some = np.flatnonzero(texts.words > 0)
        simhash[some] = some[similar(texts.simhashes[some], config.simhash_distance)]
    whole = merged(count, near, url, simhash)
    # The least key of a group is its name: `order` sorts by key, so a group's first in it has the least.
    first = np.full(count, count, np.int64)
    np.minimum.at(first, whole[order], own)
    return Groups(exact, near, texts.keys[order[first[whole]]], url, simhash)


def choose(
    groups: Groups, texts: Fingerprints, config: DedupConfig, names: NDArray[np.uint64] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Who stays.

    Args:
        groups: from `find_groups`.
        texts: their fingerprints.
        config: `exact`, `near` and `keep`.
        names: [texts] hashes of their ids, so that which of equal texts is the `longest` does not depend on the order.

    Returns:
        `(kept, winners)`: [texts] whether each stays, and the number of the text that is kept in its place, its own
        where it stays. A dropped text is an exact duplicate of its winner when both have one `groups.exact`.
    """
    numbers = np.arange(len(texts))
    by_content = groups.near if config.near else groups.exact if config.exact else numbers
    leaders = merged(len(texts), by_content, groups.url, groups.simhash)
    ranking = (
        numbers,
        numbers if names is None else names,
        texts.digests,
        texts.keys[:, 1],
        texts.keys[:, 0],
        -texts.characters,
    )
    order = np.lexsort((*(ranking if config.keep == "longest" else ranking[:1]), leaders))
    begins = np.ones(len(texts), np.bool_)
    begins[1:] = leaders[order][1:] != leaders[order][:-1]
    winners = np.empty(len(texts), np.int64)
    winners[order] = order[begins][np.cumsum(begins) - 1]
    return winners == numbers, winners


def duplicates(
    groups: Groups, texts: Fingerprints, winners: NDArray[np.int64], config: DedupConfig
) -> Iterator[Duplicates]:
    """Every group of two texts or more, in the order of the texts that stay.

    Args:
        groups: from `find_groups`.
        texts: their fingerprints.
        winners: from `choose`.
        config: of both.
    """
    several = np.flatnonzero(np.bincount(winners, minlength=1)[winners] > 1)
    several = several[np.argsort(winners[several], kind="stable")]
    kept = winners[several]
    likeness = similarity(texts.signatures, np.stack([several, kept]))
    rows = zip(several.tolist(), kept.tolist(), likeness.tolist(), strict=True)
    for winner, members in itertools.groupby(rows, itemgetter(1)):
        yield Duplicates(
            winner,
            tuple(
                Member(text, share, None if text == winner else _reason(groups, texts, text, winner, share, config))
                for text, _, share in members
            ),
        )


def _reason(groups: Groups, texts: Fingerprints, text: int, kept: int, likeness: float, config: DedupConfig) -> Reason:
    if groups.exact[text] == groups.exact[kept]:
        return "exact"
    if groups.url[text] == groups.url[kept]:
        return "url"
    if config.near and likeness >= config.threshold:
        return "minhash"
    distance = config.simhash_distance
    if distance is not None and differing_bits(texts.simhashes[[text]], texts.simhashes[[kept]])[0] <= distance:
        return "simhash"
    return "chain"


def similarity(signatures: NDArray[np.uint32], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """[pairs] share of the hashes that two texts have in common, which estimates their Jaccard similarity.

    Args:
        signatures: [bands, texts, rows].
        pairs: [2, pairs] numbers of texts.
    """
    same = np.zeros(pairs.shape[1], np.int64)
    for begin in range(0, pairs.shape[1], _PAIRS_AT_ONCE):
        some = slice(begin, begin + _PAIRS_AT_ONCE)
        for band in signatures:
            same[some] += (band[pairs[0, some]] == band[pairs[1, some]]).sum(axis=1)
    return same / (len(signatures) * signatures.shape[2])


def _link(signatures: NDArray[np.uint32], chosen: NDArray[np.int64], config: DedupConfig) -> NDArray[np.int64]:
    """For each of `chosen` the place of the least member of its group; similar signatures are joined transitively."""

    def alike(pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        return similarity(signatures, chosen[pairs]) >= config.threshold

    leaders = np.arange(len(chosen))
    for band in range(config.bands if len(chosen) else 0):
        leaders = joined_in_buckets(leaders, _band_keys(signatures[band], chosen), alike, _NEIGHBORS)
    return leaders


def _band_keys(band: NDArray[np.uint32], chosen: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[chosen] one number for the rows of a band."""
    keys = np.zeros(len(band), np.uint64)
    for row in range(band.shape[1]):
        keys = mix(keys + band[:, row])
    return keys[chosen]
