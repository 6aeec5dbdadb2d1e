"""Rows in wanted shares of tasks or languages: which are taken, how often, and an account that adds up.

A pure function of the groups, the shares and a seed. Knows not what a row says.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from lmworks.core.errors import DataError
from lmworks.data.rows.values import Row
from lmworks.data.shuffle import permutation

Group = Hashable


@dataclass(frozen=True)
class Account:
    """What was done to one group."""

    group: Group
    available: int
    taken: int
    """Rows of it in the result, repetitions counted."""
    wanted: float
    """Its share."""
    most_repeated: int
    """How often its most frequent rows are taken; rows of one group differ by one at most."""
    left_out: int
    """Rows that are not taken at all."""


@dataclass(frozen=True)
class Balanced:
    """Which rows make the wanted shares."""

    order: tuple[int, ...]
    """Numbers of the rows taken, mixed."""
    accounts: tuple[Account, ...]
    """Of each group, in the order of the shares."""


def balance(
    groups: Sequence[Group],
    shares: Mapping[Group, float],
    *,
    total: int | Literal["down", "up"] = "down",
    most_repeats: int | None = None,
    seed: int = 0,
) -> Balanced:
    """Take rows of each group in the shares that are wanted.

    The counts are the shares of the total by largest remainder, so they sum to it and each is within one row of its
    share. A group that gives more than it has repeats all of its rows equally often but for one.

    Args:
        groups: of each row.
        shares: of each group that occurs, in any unit; 0 leaves a group out.
        total: rows of the result; "down" repeats no row and takes as many as that allows, "up" leaves no row out (of
            groups with a share) and takes as few as that allows.
        most_repeats: refuse a result in which a row comes more often.
        seed: chooses rows and order.

    Raises:
        DataError: a group has no share or a share no rows, the shares are no weights, or rows repeat too often.
    """
    members: dict[Group, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    weights = _weights(members, shares)
    if isinstance(total, str):
        sizes = [Fraction(len(members[group])) / weight for group, weight in weights.items() if weight]
        total = int(min(sizes)) if total == "down" else -int(-max(sizes) // 1)
    counts = _apportion(weights, total)
    taken: list[int] = []
    accounts = []
    for place, (group, weight) in enumerate(weights.items()):
        rows, count = members[group], counts[group]
        whole, rest = divmod(count, len(rows))
        repeats = whole + (rest > 0)
        if most_repeats is not None and repeats > most_repeats:
            raise DataError(
                f"{count} rows of {group!r} are wanted and there are {len(rows)}, so that rows come {repeats} times",
                f"Lower its share or the total, or allow more than {most_repeats}",
            )
        chosen = permutation(len(rows), seed, place + 1)[:rest]
        taken += rows * whole + [rows[number] for number in chosen.tolist()]
        left_out = 0 if whole else len(rows) - rest
        accounts.append(Account(group, len(rows), count, float(weight), repeats, left_out))
    mixed = np.asarray(taken, np.int64)[permutation(len(taken), seed, 0)]
    return Balanced(tuple(mixed.tolist()), tuple(accounts))


def group_by(rows: Sequence[Row], *fields: str) -> list[Group]:
    """The value of further fields of each row, such as `task` or `language`; of several fields, joined by a slash.

    Raises:
        DataError: a row (named by its number) lacks one of the fields.
    """
    found: list[Group] = []
    for number, row in enumerate(rows, 1):
        values = [row.extra.get(field) for field in fields]
        for field, value in zip(fields, values, strict=True):
            if not isinstance(value, Hashable) or value is None:
                raise DataError(f"row {number} has no {field!r} to be balanced by", "Give every row this field")
        found.append(values[0] if len(values) == 1 else "/".join(map(str, values)))
    return found


def _weights(members: Mapping[Group, list[int]], shares: Mapping[Group, float]) -> dict[Group, Fraction]:
    if lacking := [group for group in members if group not in shares]:
        raise DataError(f"{lacking[0]!r} occurs and has no share", "Give it one; 0 leaves it out")
    if empty := [group for group, share in shares.items() if share and group not in members]:
        raise DataError(f"{empty[0]!r} has a share and no rows", "Remove it or add rows")
    if not all(0 <= share < float("inf") for share in shares.values()) or not any(shares.values()):
        raise DataError(f"shares {dict(shares)} are no weights", "Give numbers from 0 up, not all of them 0")
    exact = {group: Fraction(str(share)) for group, share in shares.items() if group in members}
    return {group: share / sum(exact.values()) for group, share in exact.items()}


def _apportion(weights: Mapping[Group, Fraction], total: int) -> dict[Group, int]:
    """Hamilton's method; of equal remainders the first group's comes first."""
    if total < 1:
        raise DataError(f"{total} rows would be left", "Add rows to the smallest group, or give a total")
    counts = {group: int(weight * total) for group, weight in weights.items()}
    behind = sorted(weights, key=lambda group: counts[group] - weights[group] * total)
    for group in behind[: total - sum(counts.values())]:
        counts[group] += 1
    return counts
