"""What a cleaning step is, and the tally that every step counts in.

A step is a pure function of one document: the outcome depends neither on the order of the documents nor on who else
works. Tallies are merged by addition, samples by the hash of what they show, so a report does not depend on it either.
Knows no rule.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lmworks.core.generation import Document

SAMPLE_CHARACTERS = 600


@dataclass(frozen=True)
class Dropped:
    """A document that a rule takes out."""

    rule: str
    """`preset/rule`, or `step/rule`."""
    value: float
    """What was measured."""


class Step(Protocol):
    """One step of cleaning."""

    def __call__(self, document: Document, tally: Tally, /) -> Document | Dropped:
        """The document, changed or not, or why it leaves; what is worth reporting is counted in the tally."""
        ...


class Samples:
    """The `size` items with the least hash of their key: a sample that does not depend on the order."""

    def __init__(self, size: int, items: Iterable[tuple[str, dict[str, Any]]] = ()) -> None:
        self._size = size
        self._items: list[tuple[str, dict[str, Any]]] = list(items)

    def offer(self, key: str, item: Mapping[str, Any]) -> None:
        """Keep the item if its key's hash is among the least."""
        rank = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        if len(self._items) < self._size or rank < self._items[-1][0]:
            self._take([(rank, dict(item))])

    def merge(self, other: Samples) -> None:
        """Keep the least of both."""
        self._take(other._items)

    def _take(self, items: list[tuple[str, dict[str, Any]]]) -> None:
        self._items = sorted([*self._items, *items], key=lambda pair: (pair[0], str(pair[1])))[: self._size]

    @property
    def items(self) -> list[dict[str, Any]]:
        """By rank."""
        return [item for _, item in self._items]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"size": self._size, "items": self._items}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Samples:
        """What `to_dict` gave."""
        return cls(values["size"], [(rank, item) for rank, item in values["items"]])


class Tally:
    """Counts and samples by group and key, such as `("rules", "stop_words")`."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._samples: dict[str, dict[str, Samples]] = {}

    def count(self, group: str, key: str, amount: int = 1) -> None:
        """Add to a counter."""
        self._counts.setdefault(group, Counter())[key] += amount

    def sample(self, group: str, key: str, identity: str, item: Mapping[str, Any], size: int = 3) -> None:
        """Offer something to show; the `size` with the least hash of `identity` are kept."""
        self._samples.setdefault(group, {}).setdefault(key, Samples(size)).offer(identity, item)

    def counts(self, group: str) -> Counter[str]:
        """Counters of a group."""
        return self._counts.get(group, Counter())

    def samples(self, group: str, key: str) -> list[dict[str, Any]]:
        """What is shown under a key."""
        found = self._samples.get(group, {}).get(key)
        return [] if found is None else found.items

    def merge(self, other: Tally) -> None:
        """Take over what another counted."""
        for group, counts in other._counts.items():
            self._counts.setdefault(group, Counter()).update(counts)
        for group, by_key in other._samples.items():
            for key, samples in by_key.items():
                self._samples.setdefault(group, {}).setdefault(key, Samples(samples._size)).merge(samples)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "counts": {group: dict(counts) for group, counts in self._counts.items()},
            "samples": {
                group: {key: samples.to_dict() for key, samples in by_key.items()}
                for group, by_key in self._samples.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """What `to_dict` gave."""
        tally = cls()
        tally._counts = {group: Counter(counts) for group, counts in values["counts"].items()}
        tally._samples = {
            group: {key: Samples.from_dict(samples) for key, samples in by_key.items()}
            for group, by_key in values["samples"].items()
        }
        return tally


def shown(document: Document) -> dict[str, Any]:
    """A document as a report shows it: its beginning and where it came from."""
    text = document.text
    cut = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"
    return {"id": document.id, "source": document.source, "text": cut}
