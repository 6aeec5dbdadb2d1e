"""Who may see whom, as a small algebra: masks combine by `&`, `|` and `~` and are asked with places.

A mask is a rule, not a matrix: it is evaluated for any queries and keys, so that the formula, the packed kernels
and the paged cache ask the same object. Knows no tensor of scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where queries and keys stand. All are broadcastable: queries [..., Q, 1], keys [..., 1, K]."""

    query: Tensor
    """Position of each query in its document."""
    key: Tensor
    query_document: Tensor | None = None
    """Number of the document of each query; None where all belong to one."""
    key_document: Tensor | None = None
    prefix_length: Tensor | None = None
    """Tokens at the beginning of each query's document that all of it may see."""
    document_length: Tensor | None = None
    """Real tokens of each query's document; what lies after is padding."""


class Mask(ABC):
    """A rule over places; True where a query may see a key."""

    @abstractmethod
    def __call__(self, places: Places) -> Tensor:
        """Bool [..., Q, K]."""

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)

    @property
    def causal(self) -> bool:
        """Known never to show the future."""
        return False

    @property
    def reach(self) -> int | None:
        """A query at place q sees no key before q - reach + 1; None where that is not known."""
        return None


@dataclass(frozen=True)
class And(Mask):
    """Both."""

    left: Mask
    right: Mask

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return self.left(places) & self.right(places)

    @property
    def causal(self) -> bool:
        """See `Mask`."""
        return self.left.causal or self.right.causal

    @property
    def reach(self) -> int | None:
        """See `Mask`."""
        return min((r for r in (self.left.reach, self.right.reach) if r is not None), default=None)


@dataclass(frozen=True)
class Or(Mask):
    """At least one."""

    left: Mask
    right: Mask

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return self.left(places) | self.right(places)

    @property
    def causal(self) -> bool:
        """See `Mask`."""
        return self.left.causal and self.right.causal

    @property
    def reach(self) -> int | None:
        """See `Mask`."""
        if self.left.reach is None or self.right.reach is None:
            return None
        return max(self.left.reach, self.right.reach)


@dataclass(frozen=True)
class Not(Mask):
    """The opposite."""

    mask: Mask

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return ~self.mask(places)


@dataclass(frozen=True)
class Full(Mask):
    """Everything."""

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return torch.ones_like(places.query - places.key, dtype=torch.bool)


@dataclass(frozen=True)
class Causal(Mask):
    """Itself and the past."""

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return places.key <= places.query

    @property
    def causal(self) -> bool:
        """See `Mask`."""
        return True


@dataclass(frozen=True)
class Window(Mask):
    """Fewer than `size` places away, on both sides (Longformer, arXiv:2004.05150; Mistral, arXiv:2310.06825)."""

    size: int

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return (places.query - places.key).abs() < self.size

    @property
    def reach(self) -> int | None:
        """See `Mask`."""
        return self.size


@dataclass(frozen=True)
class First(Mask):
    """The first `count` keys of a document: global tokens, attention sinks (StreamingLLM, arXiv:2309.17453)."""

    count: int

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        return places.key + torch.zeros_like(places.query) < self.count


@dataclass(frozen=True)
class Prefix(Mask):
    """The keys of a document's prefix, whose length comes with the places (prefix LM, arXiv:1910.10683)."""

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        assert places.prefix_length is not None, "a prefix mask needs prefix lengths"
        return places.key < places.prefix_length


@dataclass(frozen=True)
class Document(Mask):
    """The keys of the query's own document."""

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        assert places.query_document is not None, "a document mask needs document numbers"
        assert places.key_document is not None, "a document mask needs document numbers"
        return places.query_document == places.key_document


@dataclass(frozen=True)
class Padding(Mask):
    """Real tokens only, for layouts that have padding after each document."""

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        assert places.document_length is not None, "a padding mask needs document lengths"
        return places.key < places.document_length


@dataclass(frozen=True, eq=False)
class BlockSparse(Mask):
    """Pairs of blocks that a layout names (BigBird, arXiv:2007.14062)."""

    layout: Tensor = field(repr=False)
    """[blocks, blocks] bool: rows are blocks of queries."""
    block_size: int

    def __call__(self, places: Places) -> Tensor:
        """See `Mask`."""
        layout = self.layout.to(places.query.device)
        return layout[places.query // self.block_size, places.key // self.block_size]


def self_attention_mask(*, causal: bool, window: int | None = None) -> Mask:
    """What a stack's attention sees in its own document."""
    mask: Mask = Causal() if causal else Full()
    return mask & Window(window) if window is not None else mask
