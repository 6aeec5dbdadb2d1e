"""Exact and near duplicates, and which of each group is kept.

Near duplicates are found by MinHash (Broder 1997) with locality-sensitive hashing in 14 bands of 8 rows
over 5-grams, the setting of FineWeb (Penedo et al. 2024), and every candidate pair is checked against a
similarity threshold. Groups do not depend on the order of the documents. Knows neither files nor splits.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.config import Config
from lmworks.data.shingles import MAX_N, Shingles
from lmworks.data.shuffle import mix

_WORDS_AT_ONCE = 1 << 18
"""N-grams hashed together: one pass over them stays in a processor's cache."""


class DedupConfig(Config):
    """How duplicates are found and which one stays."""

    exact: bool = True
    """Drop texts that differ at most in case and white space."""
    near: bool = True
    """Drop near duplicates."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    """Least estimated Jaccard similarity of two texts' n-grams to count as near duplicates."""
    ngram: Annotated[int, Field(ge=1, le=MAX_N)] = 5
    """Words (characters in scripts without spaces) in an n-gram."""
    bands: Annotated[int, Field(ge=1, le=64)] = 14
    rows: Annotated[int, Field(ge=1, le=32)] = 8
    """Hashes in a band; two texts are compared when all of one band agree."""
    keep: Literal["longest", "first"] = "longest"
    """Of each group keep the longest text, or the first in the order of the inputs."""


@dataclass(frozen=True)
class Groups:
    """The outcome: documents fall into groups, exact ones inside near ones."""

    exact: NDArray[np.int64]
    """[documents] number of the first document with the same text."""
    near: NDArray[np.int64]
    """[documents] number of the first document in the same group of near duplicates."""
    keys: list[str]
    """[documents] digest of each text."""
    group_keys: list[str]
    """[documents] a name for each document's near-duplicate group that does not depend on the documents' order."""


def find_groups(texts: Sequence[str], shingles: Shingles, config: DedupConfig) -> Groups:
    """Group equal and similar texts.

    Args:
        texts: of the documents.
        shingles: the same texts' words.
        config: similarity and banding; `exact`, `near` and `keep` are not looked at.
    """
    keys = [exact_key(text) for text in texts]
    first: dict[str, int] = {}
    exact = np.asarray([first.setdefault(key, number) for number, key in enumerate(keys)], dtype=np.int64)
    canonical = sorted(first.values(), key=lambda number: keys[number])
    canonical = [number for number in canonical if shingles.lengths[number]]
    near = exact.copy()
    if canonical:
        signatures = minhash(shingles, config.ngram, config.bands * config.rows)[canonical]
        leaders = _link(signatures, config)
        roots: dict[int, int] = {}
        for place, leader in enumerate(leaders):
            number = canonical[place]
            roots[leader] = min(roots.get(leader, number), number)
        for place, leader in enumerate(leaders):
            near[canonical[place]] = roots[leader]
        near = near[exact]
    least: dict[int, str] = {}
    for group, key in zip(near.tolist(), keys, strict=True):
        least[group] = min(least.get(group, key), key)
    return Groups(exact, near, keys, [least[group] for group in near.tolist()])


def choose(groups: Groups, texts: Sequence[str], config: DedupConfig) -> tuple[list[int], dict[int, tuple[int, str]]]:
    """Who stays.

    Returns:
        The kept documents in order, and for each dropped one who is kept in its place and why (`exact` or `near`).
    """
    leaders = groups.near if config.near else groups.exact if config.exact else np.arange(len(texts))
    members: dict[int, list[int]] = {}
    for number, leader in enumerate(leaders.tolist()):
        members.setdefault(leader, []).append(number)
    kept, dropped = [], {}
    for group in members.values():
        if config.keep == "longest":
            best = min(group, key=lambda n: (-len(texts[n]), groups.keys[n], texts[n], n))
        else:
            best = group[0]
        kept.append(best)
        for number in group:
            same = groups.exact[number] == groups.exact[best]
            if number != best:
                dropped[number] = (best, "exact" if same else "near")
    return sorted(kept), dropped


def exact_key(text: str) -> str:
    """Digest of a text that is blind to case, white space and compatibility forms."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def minhash(shingles: Shingles, ngram: int, hashes: int) -> NDArray[np.uint32]:
    """[texts, hashes] the least value of each of `hashes` hash functions over each text's n-grams.

    The functions are multiply-shift hashes (Dietzfelbinger et al. 1997) of well-mixed 64-bit inputs.
    """
    odd = mix(np.arange(1, hashes + 1, dtype=np.uint64)) | np.uint64(1)
    add = mix(np.arange(1 << 32, (1 << 32) + hashes, dtype=np.uint64))
    signatures = np.empty((len(shingles), hashes), np.uint32)
    for begin, end in _slices(shingles):
        grams, counts = shingles.ngrams(ngram, begin, end)
        starts = np.cumsum(counts) - counts
        for number in range(hashes):
            hashed = ((grams * odd[number] + add[number]) >> np.uint64(32)).astype(np.uint32)
            signatures[begin:end, number] = np.minimum.reduceat(hashed, starts)
    return signatures


def _slices(shingles: Shingles) -> Iterator[tuple[int, int]]:
    """Runs of texts of about `_WORDS_AT_ONCE` words."""
    begin = words = 0
    for number, length in enumerate(shingles.lengths.tolist()):
        words += length + 1
        if words >= _WORDS_AT_ONCE:
            yield begin, number + 1
            begin, words = number + 1, 0
    if begin < len(shingles):
        yield begin, len(shingles)


def _link(signatures: NDArray[np.uint32], config: DedupConfig) -> list[int]:
    """For each signature the least member of its group; similar signatures are joined transitively."""
    leader = list(range(len(signatures)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for band in range(config.bands):
        block = np.ascontiguousarray(signatures[:, band * config.rows : (band + 1) * config.rows])
        keys = block.view(np.dtype((np.void, block.itemsize * config.rows))).ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        # Every member of a bucket is compared with the bucket's first; similar ones meet in other bands too.
        head = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        tails = np.flatnonzero(np.concatenate([[False], same]))
        pairs = np.stack([order[head[tails]], order[tails]])
        similarity = (signatures[pairs[0]] == signatures[pairs[1]]).mean(axis=1)
        for one, other in pairs[:, similarity >= config.threshold].T.tolist():
            a, b = find(one), find(other)
            leader[max(a, b)] = min(a, b)
    return [find(place) for place in range(len(leader))]
