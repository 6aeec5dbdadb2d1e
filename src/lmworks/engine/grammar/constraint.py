"""What a completion's next token must satisfy: the seam between grammars and sampling. Knows no grammar."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """The state of one completion in one grammar."""

    def mask(self) -> Tensor:
        """[ceil(V/32)] int32, a bit for every token that may come next; the end-of-sequence ones included."""
        ...

    def accept(self, token_id: int) -> bool:
        """Advance by a token; False where it is not allowed, and nothing has changed."""
        ...

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens (speculative decoding)."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        ...

    @property
    def fault(self) -> str | None:
        """Why the grammar could not be followed to its end, where that is so."""
        ...
