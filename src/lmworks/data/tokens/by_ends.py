"""Documents that lie one after another and of which the ends are known: what all kinds of token files have in common.

Knows no file format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError

Ids = NDArray[np.unsignedinteger]


class DocumentsByEnds(ABC):
    """`len(it)` documents, `it[i]` the token ids of one.

    A pickled one opens its files again where it is read, as in a worker of a loader, instead of carrying their content.

    Args:
        ends: [documents] ascending: how many tokens there are up to the end of each document.
        opened_with: arguments of its class.
    """

    def __init__(self, ends: NDArray[np.int64], opened_with: tuple[Any, ...]) -> None:
        self._ends, self._opened_with = ends, opened_with
        self.num_tokens = int(ends[-1]) if len(ends) else 0
        """Tokens of all documents together, their begin and end marks included."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._opened_with

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Ids:
        """The token ids of one document, as a view of a file."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self._tokens(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))

    def __iter__(self) -> Iterator[Ids]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[documents] tokens in each document."""
        return np.diff(self._ends, prepend=0)

    @abstractmethod
    def _tokens(self, begin: int, end: int) -> Ids:
        """The tokens `[begin, end)` of all, which are one document's."""


def ascending(ends: NDArray[np.int64]) -> bool:
    """Whether numbers can be the ends of documents."""
    return not len(ends) or (int(ends[0]) >= 0 and not bool((np.diff(ends) < 0).any()))


def bytes_of(ids: Ids, dtype: np.dtype[Any]) -> bytes:
    """A document as files hold it.

    Raises:
        DataError: the type has no room for an id.
    """
    if len(ids) and int(ids.max()) > np.iinfo(dtype).max:
        raise DataError(f"the id {ids.max()} does not fit into {dtype.itemsize} bytes", "Give a larger vocab_size")
    return ids.astype(dtype).tobytes()
