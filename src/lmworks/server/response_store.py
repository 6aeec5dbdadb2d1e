"""Responses that later requests may go on from: in memory, bounded, each visible to its own client alone.

Knows no route.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_RESPONSES = 2000
MAX_CHARACTERS = 64 * 2**20
"""Of all that is stored; the oldest go first."""


@dataclass(frozen=True)
class StoredResponse:
    """One response with everything said before it."""

    owner: str
    """Who asked; see `Caller.salt`."""
    body: str
    """The response as JSON."""
    input: Sequence[dict[str, Any]]
    """The request's own items."""
    conversation: Sequence[dict[str, Any]]
    """All items up to the response and with it, function calls included."""
    size: int
    """In characters, roughly; what is shared with earlier responses counts again."""


class ResponseStore:
    """The latest responses of one server. One event loop's own."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_responses, self._max_characters = max_responses, max_characters
        self._stored: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        """By owner and id, for clients may choose ids."""
        self._size = 0

    def put(self, response_id: str, stored: StoredResponse) -> None:
        """Remember a response, and forget the oldest where there are too many."""
        key = stored.owner, response_id
        self._forget(key)
        self._stored[key] = stored
        self._size += stored.size
        while len(self._stored) > self._max_responses or (self._size > self._max_characters and len(self._stored) > 1):
            self._forget(next(iter(self._stored)))

    def get(self, response_id: str, owner: str) -> StoredResponse | None:
        """A client's own response, if it is still there."""
        return self._stored.get((owner, response_id))

    def delete(self, response_id: str, owner: str) -> bool:
        """Forget a client's own response; whether it was there."""
        found = self.get(response_id, owner) is not None
        if found:
            self._forget((owner, response_id))
        return found

    def _forget(self, key: tuple[str, str]) -> None:
        stored = self._stored.pop(key, None)
        self._size -= 0 if stored is None else stored.size
