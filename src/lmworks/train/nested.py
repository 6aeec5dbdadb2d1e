"""Nested settings and records as flat ones. Knows neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leaves(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """What is no mapping, by the keys that lead to it, joined.

    Args:
        values: mappings within mappings.
        separator: between keys.
        prefix: before all keys.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= leaves(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[prefix + key] = value
    return flat
