"""Tables of `"module:attribute"` strings, imported when used. Registration is a line in a table, never an import."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def resolve(reference: str) -> Any:
    """Import and return what `"package.module:attribute"` names."""
    module, _, attribute = reference.partition(":")
    assert attribute, f"reference {reference!r} must be 'module:attribute'"
    return getattr(import_module(module), attribute)
