"""What one step asks of a paged cache: whose tokens, at which places, in which blocks. Knows no attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

SCALE_BYTES = 4
"""Behind the numbers of a vector in a cache of int8: the float32 they are multiplied by."""


@dataclass(frozen=True)
class PagedSequence:
    """One sequence's share of a step."""

    block_table: Sequence[int]
    """Blocks holding its keys, in order."""
    start: int
    """Tokens before this step's."""
    length: int
    """New tokens, at positions `start … start + length - 1`; at least one."""
    source_length: int | None = None
    """Keys in the blocks where they are not the sequence's own tokens (cross-attention)."""

    @property
    def num_keys(self) -> int:
        """Keys in the blocks, the new tokens' included."""
        return self.start + self.length if self.source_length is None else self.source_length


class PagedStep(tuple[PagedSequence, ...]):
    """The sequences of a step in the order of the packed tokens, and what is laid out of them once for all layers."""

    @cached_property
    def block_tables(self) -> Tensor:
        """[S, blocks of the longest] int32 on the CPU, padded with zeros."""
        width = max((len(s.block_table) for s in self), default=0)
        tables = torch.zeros(len(self), width, dtype=torch.int32)
        for row, s in zip(tables, self, strict=True):
            row[: len(s.block_table)] = torch.tensor(s.block_table, dtype=torch.int32)
        return tables

    @cached_property
    def causal_shares(self) -> Tensor:
        """[S, 4] int32 on the CPU: start, length, first packed token, 0."""
        return self._shares([0] * len(self))

    @cached_property
    def full_shares(self) -> Tensor:
        """As `causal_shares`, with the number of keys, which all tokens of the sequence see."""
        return self._shares([s.num_keys for s in self])

    def on(self, device: torch.device, *, causal: bool) -> tuple[Tensor, Tensor]:
        """Block tables, and causal or full shares, where the cache is; copied once."""
        shares = self.causal_shares if causal else self.full_shares
        if device.type == "cpu":
            return self.block_tables, shares
        kind = "causal" if causal else "full"
        if kind not in self._copies:
            self._copies[kind] = self.block_tables.to(device), shares.to(device)
        return self._copies[kind]

    def bounds_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """[S+1] int32 bounds of the packed tokens and [S] int32 numbers of keys, where the cache is; copied once."""
        if "bounds" not in self._copies:
            bounds = torch.tensor([0, *accumulate(s.length for s in self)], dtype=torch.int32)
            num_keys = torch.tensor([s.num_keys for s in self], dtype=torch.int32)
            self._copies["bounds"] = bounds.to(device), num_keys.to(device)
        return self._copies["bounds"]

    @cached_property
    def _copies(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    @cached_property
    def reads_sources(self) -> bool:
        """Whether the keys are those of sources."""
        return any(s.source_length is not None for s in self)

    def _shares(self, seen: list[int]) -> Tensor:
        rows, first = [], 0
        for s, keys in zip(self, seen, strict=True):
            rows.append((s.start, s.length, first, keys))
            first += s.length
        return torch.tensor(rows, dtype=torch.int32).view(-1, 4)


def decoded(vectors: Tensor) -> Tensor:
    """[..., D] numbers of a cache's vectors: int8 ones, [..., D + 4], as float32, others as they are."""
    if vectors.dtype != torch.int8:
        return vectors
    scale = vectors[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return vectors[..., :-SCALE_BYTES].float() * scale


def encoded(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Vectors [..., D] as a cache of that type has them; int8 ones are [..., D + 4], each on a grid of its own."""
    if dtype != torch.int8:
        return vectors.to(dtype)
    floats = vectors.float()
    scale = floats.abs().amax(-1, keepdim=True) / 127
    numbers = (floats * torch.where(scale > 0, 1 / scale, 0)).round().to(torch.int8)
    return torch.cat([numbers, scale.view(torch.int8)], -1)
