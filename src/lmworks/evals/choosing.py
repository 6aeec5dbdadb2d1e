"""A seeded choice of items. Knows not what they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def choose(items: Sequence[T], limit: int, seed: int) -> list[T]:
    """Up to `limit` of `items` drawn without replacement, in their own order."""
    if len(items) <= limit:
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]
