"""Byte-pair encoding from scratch: what the library does fast, as plainly as it can be said.

Sennrich et al., 2016 (arXiv:1508.07909). Words are tuples of ids. Training merges the most frequent pair of neighbors,
again and again; encoding applies the same merges in the same order. The first ids are the 256 bytes, in the order of
the letters that byte-level vocabularies write them as. Extending a vocabulary goes on with the same training. Knows
no file and no special token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

from lmworks.tokenization.byte_alphabet import BYTE_OF

Pair = tuple[int, int]
Word = tuple[int, ...]

BYTES = bytes(BYTE_OF[letter] for letter in sorted(BYTE_OF))
"""The byte of each of the first 256 ids."""


@dataclass(frozen=True)
class ByteBPE:
    """A vocabulary of bytes and merges, applied to words that were cut already."""

    merges: dict[Pair, int]
    """Two ids to the one that stands for both, in the order in which they were learned."""

    def encode(self, words: Iterable[str]) -> list[int]:
        """Token ids of words, which no token crosses."""
        return [i for word in words for i in merged(to_ids(word), self.merges)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        parts = {new: pair for pair, new in self.merges.items()}

        def spelled(token: int) -> bytes:
            return BYTES[token : token + 1] if token < 256 else b"".join(map(spelled, parts[token]))

        return b"".join(map(spelled, ids)).decode("utf-8", "replace")


def to_ids(word: str) -> Word:
    """The bytes of a word, each as its id."""
    return tuple(BYTES.index(byte) for byte in word.encode())


def train(words: Mapping[str, int], vocab_size: int, min_frequency: int = 2) -> ByteBPE:
    """Learn from words and how often each occurs, until there are `vocab_size` tokens or no pair is frequent."""
    counts: Counter[Word] = Counter()
    for word, count in words.items():
        counts[to_ids(word)] += count
    return ByteBPE(learn_merges(counts, vocab_size - 256, 256, min_frequency))


def learn_merges(
    words: Mapping[Word, int],
    num_merges: int,
    first_id: int,
    min_frequency: int = 2,
    allowed: Callable[[Pair], bool] = lambda pair: True,
    learned: Callable[[Pair, int], None] = lambda pair, new: None,
) -> dict[Pair, int]:
    """The most frequent pairs, each counted after the merges before it; of equals the one of the lowest ids.

    Args:
        words: as ids, and how often each occurs.
        num_merges: at most.
        first_id: of what the first merge makes; the next follow.
        min_frequency: a rarer pair is not merged.
        allowed: which pairs may be.
        learned: told each merge as soon as it is chosen.
    """
    spelled = {word: word for word in words}
    places: dict[Pair, set[Word]] = {}
    frequency: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            frequency[pair] += count
            places.setdefault(pair, set()).add(word)
    queue = [(-count, *pair) for pair, count in frequency.items()]
    heapify(queue)
    merges: dict[Pair, int] = {}
    while queue and len(merges) < num_merges:
        count, *tokens = heappop(queue)
        best = (tokens[0], tokens[1])
        if -count != frequency[best] or not allowed(best):
            continue  # counted anew since it was put there
        if -count < min_frequency:
            break
        merges[best] = first_id + len(merges)
        learned(best, merges[best])
        changed: set[Pair] = set()
        for word in places.pop(best):
            before, after = spelled[word], merge(spelled[word], best, merges[best])
            for pair in pairwise(before):
                frequency[pair] -= words[word]
                changed.add(pair)
            for pair in pairwise(after):
                frequency[pair] += words[word]
                places.setdefault(pair, set()).add(word)
                changed.add(pair)
            spelled[word] = after
        for pair in changed:
            if frequency[pair]:
                heappush(queue, (-frequency[pair], *pair))
    return merges


def merged(word: Word, merges: Mapping[Pair, int]) -> Word:
    """A word after all merges, the earliest learned first."""
    while pairs := [pair for pair in pairwise(word) if pair in merges]:
        first = min(pairs, key=merges.__getitem__)
        word = merge(word, first, merges[first])
    return word


def merge(word: Word, pair: Pair, new: int) -> Word:
    """A word with every occurrence of a pair, from the left, replaced by one id."""
    found: list[int] = []
    for token in word:
        if found and (found[-1], token) == pair:
            found[-1] = new
        else:
            found.append(token)
    return tuple(found)
