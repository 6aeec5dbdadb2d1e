"""Stable names for rows. Knows no format."""

from __future__ import annotations

import hashlib


def row_id(*content: str) -> str:
    """Sixteen hex digits that depend on the content alone."""
    return hashlib.sha256("\0".join(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]
