"""Guessing tokens ahead (speculative decoding, arXiv:2211.17192): who guesses, and why it changes no answer.

A step verifies k guesses in one chunk of k + 1 tokens: the model gives logits after each of them. At every place the
token is then sampled as it would be without guesses: by the same parameters, from the same logits, with the number
that belongs to this place (see `sampler`). While it equals the guess, the logits after the guess are those after the
token, and the next place follows; at the first difference the rest is dropped. So the output is not only distributed
as without guesses but the very same, for every seed, and a guess may come from anywhere: it never enters the output.

The cost is in acceptance. For a guess x drawn from q, rejection sampling keeps it with probability min(1, p(x)/q(x)),
Σ min(p, q) in all, the most that is possible. Here a fixed guess is kept with probability p(x). For n-grams that is the
same, since their q is certain. A draft model draws its guesses with the very numbers of the places, so that equal
distributions still agree always, and close ones most of the time.

Knows no model: the draft model is in `speculative_draft`.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

from lmworks.engine.config import SpeculativeConfig
from lmworks.engine.scheduling.sequence import Sequence

INDEXED_TOKENS = 2048
"""Of a new prompt, in one step: a few milliseconds. Until it is known to its end, nothing is guessed."""


class Proposer(Protocol):
    """Guesses the tokens that come next."""

    def propose(self, wanted: Rows[tuple[Sequence, int]]) -> list[list[int]]:
        """For each sequence at most so many tokens to follow its last one; none where there is no idea."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...

    def sleep(self) -> None:
        """Give memory back that can be had again."""
        ...

    def wake_up(self) -> None:
        """Take it again."""
        ...


class NgramProposer:
    """Guesses that what followed the last tokens further up follows them again (prompt lookup).

    Of the n-grams that end the sequence, from `prompt_lookup_max` tokens down to `prompt_lookup_min`, the longest that
    occurred before decides, where it occurred last. A guess may run into itself: what repeats goes on repeating.

    Args:
        config: lengths of n-grams.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self._lengths = range(config.prompt_lookup_max, config.prompt_lookup_min - 1, -1)
        self._indices: dict[Sequence, _NgramIndex] = {}

    def propose(self, wanted: Rows[tuple[Sequence, int]]) -> list[list[int]]:
        """See `Proposer`."""
        drafts = []
        for sequence, count in wanted:
            index = self._indices.get(sequence)
            if index is None:
                index = self._indices[sequence] = _NgramIndex(self._lengths)
            drafts.append(index.following(sequence.token_ids, count))
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """See `Proposer`."""
        self._indices.pop(sequence, None)

    def sleep(self) -> None:
        """It holds nothing of size."""

    def wake_up(self) -> None:
        """See `sleep`."""


class _NgramIndex:
    """Where each n-gram of a growing sequence occurred last with a token behind it."""

    def __init__(self, lengths: range) -> None:
        self._places: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in lengths}
        self._known = 1

    def following(self, tokens: list[int], count: int) -> list[int]:
        """`count` tokens that may follow; none where the last tokens are new."""
        length = len(tokens)
        known, self._known = self._known, min(length, self._known + INDEXED_TOKENS)
        for n, places in self._places.items():
            for place in range(max(known, n), self._known):
                places[tuple(tokens[place - n : place])] = place
        if self._known < length:
            return []
        for n, places in self._places.items():
            found = places.get(tuple(tokens[-n:]))
            if found is not None:
                return [tokens[found + i % (length - found)] for i in range(count)]
        return []


def allowed(sequence: Sequence, drafts: list[int]) -> list[int]:
    """The drafts up to the first that the sequence's constraint forbids."""
    constraint = sequence.constraint
    if constraint is None:
        return drafts
    accepted = 0
    while accepted < len(drafts) and constraint.accept(drafts[accepted]):
        accepted += 1
    constraint.rollback(accepted)
    return drafts[:accepted]
