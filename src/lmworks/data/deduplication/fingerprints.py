"""What deduplication knows of each text: digests, length and MinHash signature.

Signatures are MinHash (Broder 1997) over hashed n-grams. Knows neither texts' places nor which one stays.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.config import Config
from lmworks.data.deduplication.native import folded, joined, letters, operations
from lmworks.data.deduplication.simhash import simhashes
from lmworks.data.deduplication.urls import url_keys
from lmworks.data.shingles import MAX_N, Shingles
from lmworks.data.shuffle import mix

_WORDS_AT_ONCE = 1 << 18
"""N-grams hashed together: one pass over them stays in a processor's cache."""
_TEXTS_AT_ONCE = 256
"""Taken together: their words and folded forms stay in a processor's cache."""


class DedupConfig(Config):
    """How duplicates are found and which one stays."""

    exact: bool = True
    """Drop texts that differ at most in case, white space, Unicode form and what cannot be seen."""
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
    """Of each group keep the longest text, or the first in the order of the inputs. With `longest` the outcome does not
    depend on that order, and which copy of a line or a run is the first follows from the texts."""
    url: bool = False
    """Drop texts whose address (`meta["url"]`) is that of another but for what does not change a page."""
    simhash_distance: Annotated[int | None, Field(ge=0, le=14)] = None
    """Drop texts whose 64-bit SimHashes differ in at most so many bits; 3 finds close copies. None looks at none."""
    lines: Literal["all", "first", "none"] = "all"
    """Of a line that the corpus holds several times keep all copies, the first, or none."""
    paragraphs: Literal["all", "first", "none"] = "all"
    """The same of paragraphs."""
    least_characters: Annotated[int, Field(ge=1)] = 20
    """Shorter lines and paragraphs may repeat."""
    least_copies: Annotated[int, Field(ge=2)] = 2
    """So many copies of a line or paragraph are a repetition."""
    substring_bytes: Annotated[int | None, Field(ge=1, lt=1 << 24)] = None
    """Cut out what repeats so many bytes of UTF-8 of an earlier place, word for word. None cuts nothing."""

    @property
    def cuts(self) -> bool:
        """Whether parts of the texts that stay are cut out; see `cuts.repeated_parts`."""
        return self.lines != "all" or self.paragraphs != "all" or self.substring_bytes is not None


@dataclass(frozen=True)
class Fingerprints:
    """Of `n` texts."""

    keys: NDArray[np.uint64]
    """[n, 2] digest that is blind to case, white space and compatibility forms."""
    digests: NDArray[np.uint64]
    """[n] digest of the text as it is."""
    characters: NDArray[np.int64]
    """[n]"""
    words: NDArray[np.int64]
    """[n]"""
    signatures: NDArray[np.uint32]
    """[bands, n, rows]; may be mapped from a file."""
    urls: NDArray[np.uint64]
    """[n] hashes of normalized addresses, 0 without one; zeros where the configuration asks for none."""
    simhashes: NDArray[np.uint64]
    """[n] zeros where the configuration asks for none."""

    def __len__(self) -> int:
        return len(self.keys)


def fingerprint(texts: Sequence[str], config: DedupConfig, urls: Sequence[str] | None = None) -> Fingerprints:
    """Fingerprints of texts.

    Args:
        texts: any.
        config: n-gram, banding and what else is looked at.
        urls: address of each text, empty where it has none; none has one if not given.
    """
    count = len(texts)
    none = np.zeros(count, np.uint64)
    words, simhash = np.zeros(count, np.int64), none.copy()
    signatures = np.empty((config.bands, count, config.rows), np.uint32)
    for begin in range(0, count, _TEXTS_AT_ONCE):  # so that few words lie in memory
        some = slice(begin, begin + _TEXTS_AT_ONCE)
        shingles = Shingles(texts[some])
        words[some], signatures[:, some] = shingles.lengths, minhash(shingles, config)
        if config.simhash_distance is not None:
            simhash[some] = simhashes(shingles, config.ngram)
    return Fingerprints(
        exact_keys(texts),
        np.frombuffer(b"".join(map(digest, texts)), "<u8"),
        np.asarray([len(text) for text in texts], np.int64),
        words,
        signatures,
        url_keys(urls) if urls is not None and config.url else none,
        simhash,
    )


def exact_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """[texts, 2] what `exact_key` makes of each, natively where that can be had."""
    native = operations()
    keys: list[bytes] = []
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[begin : begin + _TEXTS_AT_ONCE]
        if native is None:
            keys += map(exact_key, some)
            continue
        text, ends = joined([unicodedata.normalize("NFKC", text) for text in some])
        forms, cuts = bytearray(3 * len(text)), np.zeros(len(some) + 1, np.int64)
        native.lm_fold(
            text,
            ends.ctypes.data,
            len(some),
            *letters().addresses,
            np.frombuffer(forms, np.uint8).ctypes.data,
            cuts[1:].ctypes.data,
        )
        view, cut = memoryview(forms), itertools.pairwise(cuts.tolist())
        keys += [hashlib.blake2b(view[first:end], digest_size=16).digest() for first, end in cut]
    return np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)


def exact_key(text: str) -> bytes:
    """Sixteen bytes that are blind to case, white space, compatibility forms and what cannot be seen."""
    form = " ".join(folded(unicodedata.normalize("NFKC", text)).split())
    return hashlib.blake2b(form.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def digest(text: str) -> bytes:
    """Eight bytes that depend on every character."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def minhash(shingles: Shingles, config: DedupConfig) -> NDArray[np.uint32]:
    """[bands, texts, rows] the least value of each of `bands × rows` hash functions over each text's n-grams.

    The functions are multiply-shift hashes (Dietzfelbinger et al. 1997) of well-mixed 64-bit inputs.
    """
    native = operations()
    if native is None:
        return minhash_reference(shingles, config)
    odd, add = _functions(config)
    signatures = np.empty((config.bands, len(shingles), config.rows), np.uint32)
    words = (shingles.flat.ctypes.data, shingles.starts.ctypes.data, shingles.lengths.ctypes.data, len(shingles))
    hashing = (config.ngram, odd.ctypes.data, add.ctypes.data, config.bands, config.rows)
    native.lm_minhash(*words, *hashing, signatures.ctypes.data)
    return signatures


def minhash_reference(shingles: Shingles, config: DedupConfig) -> NDArray[np.uint32]:
    """What `minhash` computes, slowly."""
    odd, add = _functions(config)
    signatures = np.empty((config.bands, len(shingles), config.rows), np.uint32)
    for begin, end in _slices(shingles):
        grams, counts = shingles.ngrams(config.ngram, begin, end)
        starts = np.cumsum(counts) - counts
        for number in range(len(odd)):
            hashed = ((grams * odd[number] + add[number]) >> np.uint64(32)).astype(np.uint32)
            signatures[number // config.rows, begin:end, number % config.rows] = np.minimum.reduceat(hashed, starts)
    return signatures


def _functions(config: DedupConfig) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """[bands * rows] an odd factor and a summand of each hash function."""
    hashes = config.bands * config.rows
    odd = mix(np.arange(1, hashes + 1, dtype=np.uint64)) | np.uint64(1)
    return odd, mix(np.arange(1 << 32, (1 << 32) + hashes, dtype=np.uint64))


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
