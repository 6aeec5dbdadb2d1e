"""How far annotators agree, as the field measures it. Pure functions of who said what of which item. Knows no file.

| measure | of | publication |
|---|---|---|
| percent agreement | pairs of labels of one item | – |
| Cohen's kappa | two annotators | Cohen 1960 |
| Fleiss' kappa | items with equally many labels | Fleiss 1971 |
| Krippendorff's alpha | any number of labels an item | "Computing Krippendorff's Alpha-Reliability", 2011 |

1 is full agreement, 0 what chance gives. A measure is None where it says nothing: nobody labeled the same items, or
all labels are alike, so that chance agrees too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Ratings = Mapping[str, Mapping[str, Hashable]]
"""Of each item, what each annotator said."""


@dataclass(frozen=True)
class Agreement:
    """All measures of some ratings."""

    items: int
    labels: int
    doubly: int
    """Items with two labels and more; only they tell of agreement."""
    percent: float | None
    """Share of the pairs of labels of one item that agree."""
    cohen: dict[tuple[str, str], float | None]
    """Of each two annotators with items in common."""
    fleiss: float | None
    alpha: float | None


def agreement(ratings: Ratings) -> Agreement:
    """All measures; of Fleiss' on the items with the most usual number of labels."""
    several = [list(said.values()) for said in ratings.values() if len(said) > 1]
    usual = Counter(map(len, several)).most_common(1)[0][0] if several else 0
    names = sorted({name for said in ratings.values() for name in said})
    pairs = {}
    for one, other in combinations(names, 2):
        both = [(said[one], said[other]) for said in ratings.values() if one in said and other in said]
        if both:
            pairs[one, other] = cohen_kappa(*zip(*both, strict=True))
    return Agreement(
        len(ratings), sum(map(len, ratings.values())), len(several), percent_agreement(several), pairs,
        fleiss_kappa([labels for labels in several if len(labels) == usual]), krippendorff_alpha(several),
    )  # fmt: skip


def percent_agreement(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Share of agreeing pairs among the labels of each item."""
    agreeing = sum(count * (count - 1) for labels in items for count in Counter(labels).values())
    pairs = sum(len(labels) * (len(labels) - 1) for labels in items)
    return agreeing / pairs if pairs else None


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """What two annotators say of the same items, in order."""
    total = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / total if total else 0.0
    ones, others = Counter(first), Counter(second)
    chance = sum(ones[label] * others[label] for label in ones) / total**2 if total else 1.0
    return _beyond(observed, chance)


def fleiss_kappa(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Of items with equally many labels, two at least, by whomever."""
    if not items:
        return None
    assert len({len(labels) for labels in items}) == 1, "Fleiss' kappa needs equally many labels of each item"
    observed = percent_agreement(items)
    shares = Counter(label for labels in items for label in labels)
    total = shares.total()
    return None if observed is None else _beyond(observed, sum((count / total) ** 2 for count in shares.values()))


def _differ(first: Hashable, second: Hashable) -> float:
    return float(first != second)


def krippendorff_alpha(
    items: Sequence[Sequence[Hashable]], distance: Callable[[Hashable, Hashable], float] = _differ
) -> float | None:
    """Of items with any number of labels; those with one alone are left out.

    Args:
        items: labels of each, by whomever.
        distance: of two labels; whether they differ (nominal) if not given.
    """
    items = [labels for labels in items if len(labels) > 1]
    shares = Counter(label for labels in items for label in labels)
    total = shares.total()
    observed = sum(2 * sum(distance(a, b) for a, b in combinations(labels, 2)) / (len(labels) - 1) for labels in items)
    expected = sum(2 * shares[a] * shares[b] * distance(a, b) for a, b in combinations(shares, 2))
    return 1 - (total - 1) * observed / expected if expected else None


def _beyond(observed: float, chance: float) -> float | None:
    """How much of what chance leaves open is agreed on."""
    return (observed - chance) / (1 - chance) if chance < 1 else None
