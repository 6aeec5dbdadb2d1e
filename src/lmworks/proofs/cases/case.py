"""One tiny model, described in the reference library's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A row of the table of families."""

    family: str
    """`model_type`."""
    name: str
    """What is special about this case; unique within the family."""
    config: Mapping[str, Any] = field(hash=False)
    """Keyword arguments of the reference's configuration class."""
    architecture: str
    """Class of `transformers`."""
    longest: int = 40
    """Tokens of the longest document; beyond the trained context where a position scaling is to be seen."""
    own_head: bool = False
    """The head's matrix is not the embedding's, although the reference ties them when it makes a model (T5 1.1)."""
