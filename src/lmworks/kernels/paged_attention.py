"""Attention over a cache of fixed-size blocks: the formula, and the path that is fast on a CPU.

The cache of one layer is `[2, K, blocks, block_size, D]`: keys, then values, head-major, so that gathered
blocks of all sequences fall straight into the operands of one batched matrix product. A sequence's tokens
lie in the blocks of its table, in order. Knows no scheduler and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

QUERY_TILE = 64
"""Query tokens per matrix product of a prefill: bounds the scores and skips most of the masked future."""

PADDING_LIMIT = 2
"""Single-token sequences share a product while the longest has at most this many times the shortest's blocks."""

PagedAttentionMethod = Literal["batched", "reference"]


@dataclass(frozen=True)
class PagedSequence:
    """One sequence's share of a step."""

    block_table: Sequence[int]
    """Blocks holding its tokens, in order."""
    start: int
    """Tokens already in the cache."""
    length: int
    """New tokens, at positions `start … start + length - 1`; at least one."""


def write_kv(cache: Tensor, rows: Tensor, key: Tensor, value: Tensor) -> None:
    """Store new keys and values.

    Args:
        cache: [2, K, blocks, block_size, D], contiguous.
        rows: what `write_rows` returned for these tokens.
        key: [N, K, D].
        value: [N, K, D].
    """
    new = torch.stack((key, value)).view(-1, cache.shape[-1])
    cache.view(-1, cache.shape[-1]).index_copy_(0, rows, new)


def write_rows(sequences: Sequence[PagedSequence], cache_shape: Sequence[int], device: torch.device) -> Tensor:
    """[2·N·K] row in the flattened cache of every new key head and value head; the same for all layers."""
    _, kv_heads, blocks, block_size, _ = cache_shape
    slots = [
        s.block_table[place // block_size] * block_size + place % block_size
        for s in sequences
        for place in range(s.start, s.start + s.length)
    ]
    heads = torch.arange(2 * kv_heads, device=device).view(2, 1, kv_heads) * (blocks * block_size)
    return (heads + torch.tensor(slots, device=device).view(1, -1, 1)).flatten()


def paged_attention_reference(
    query: Tensor, cache: Tensor, sequences: Sequence[PagedSequence], *, scale: float
) -> Tensor:
    """softmax(q kᵀ · scale) v, sequence by sequence, head by head, in float32; the oracle.

    Shapes as in `PagedAttention.__call__`.
    """
    groups = query.shape[1] // cache.shape[1]
    outputs = []
    for q, s in zip(torch.split(query, [s.length for s in sequences]), sequences, strict=True):
        end = s.start + s.length
        held = cache[:, :, list(s.block_table)].flatten(2, 3)[:, :, :end].float()  # [2, K, end, D]
        key, value = held.repeat_interleave(groups, dim=1)
        scores = torch.einsum("nhd,hmd->hnm", q.float(), key) * scale
        visible = torch.arange(end) <= torch.arange(s.start, end)[:, None]
        weights = scores.masked_fill(~visible.to(q.device), float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hnm,hmd->nhd", weights, value).to(query.dtype))
    return torch.cat(outputs)


@dataclass(frozen=True)
class _Group:
    """Sequences that go through one product: several with one new token each, or a single one with more."""

    places: Tensor | slice
    """Their places in the packed tokens."""
    size: int
    blocks: Tensor
    """[2·K·size·blocks per sequence] rows of the cache seen as blocks."""
    tiles: tuple[tuple[int, int, Tensor], ...]
    """`(tokens, keys, bias)`: so many of the new tokens see the first `keys` places; bias broadcasts to
    [K·size, tokens·G, keys]."""


class PagedAttention:
    """Attention of one step's tokens, planned once and run in every layer.

    Scaled dot-product kernels are slow on a CPU when there is one query token per sequence, and so is
    repeating the key heads. Here the G query heads of a key head are rows of one matrix, and the mask is
    the addend of the product.

    Args:
        sequences: in the order of the packed tokens; a single-token sequence is cheapest.
        cache_shape: of one layer, [2, K, blocks, block_size, D].
        num_heads: query heads, a multiple of K.
        dtype: of the activations.
        device: of the cache.
        method: `reference` forces the formula.
    """

    def __init__(
        self,
        sequences: Sequence[PagedSequence],
        cache_shape: Sequence[int],
        num_heads: int,
        dtype: torch.dtype,
        device: torch.device,
        method: PagedAttentionMethod = "batched",
    ) -> None:
        self.sequences, self.method = sequences, method
        self.rows = write_rows(sequences, cache_shape, device)
        _, self._kv_heads, self._blocks, self._block_size, _ = cache_shape
        self._head_group = num_heads // self._kv_heads
        self._like = torch.empty(0, dtype=dtype, device=device)
        if method == "batched":
            self._groups = self._plan(sequences)

    def __call__(self, query: Tensor, cache: Tensor, *, scale: float) -> Tensor:
        """Attend; the step's own keys and values must be in the cache already.

        Args:
            query: [N, H, D].
            cache: [2, K, blocks, block_size, D].
            scale: multiplies the scores.

        Returns:
            [N, H, D].
        """
        if self.method == "reference":
            return paged_attention_reference(query, cache, self.sequences, scale=scale)
        if len(self._groups) == 1:
            return self._attend(self._groups[0], query, cache, scale)
        output = torch.empty_like(query)
        for group in self._groups:
            output[group.places] = self._attend(group, query[group.places], cache, scale)
        return output

    def _attend(self, group: _Group, query: Tensor, cache: Tensor, scale: float) -> Tensor:
        """[tokens of the group, H, D] -> the same."""
        kv_heads, head_dim = self._kv_heads, query.shape[-1]
        held = cache.view(2 * kv_heads * self._blocks, -1).index_select(0, group.blocks)
        key, value = held.view(2, kv_heads * group.size, -1, head_dim).unbind()
        outputs = []
        done = 0
        for tokens, keys, bias in group.tiles:
            # [size·tokens, K, G, D] -> [K·size, tokens·G, D]; either size or tokens is 1
            q = query[done * group.size : (done + tokens) * group.size]
            q = (
                q.view(-1, kv_heads, self._head_group, head_dim)
                .transpose(0, 1)
                .reshape(kv_heads * group.size, tokens * self._head_group, head_dim)
            )
            scores = torch.baddbmm(bias, q, key[:, :keys].transpose(1, 2), alpha=scale)
            o = torch.bmm(scores.softmax(-1), value[:, :keys])
            outputs.append(o.view(kv_heads, group.size * tokens, -1).transpose(0, 1))
            done += tokens
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).reshape(query.shape)

    def _plan(self, sequences: Sequence[PagedSequence]) -> list[_Group]:
        offsets = [0, *accumulate(s.length for s in sequences)]
        groups = []
        single = sorted((i for i, s in enumerate(sequences) if s.length == 1), key=lambda i: sequences[i].start)
        while single:
            limit = PADDING_LIMIT * self._num_blocks(sequences[single[0]])
            members = sorted(i for i in single if self._num_blocks(sequences[i]) <= limit)
            single = single[len(members) :]
            places = torch.tensor([offsets[i] for i in members], device=self._like.device)
            groups.append(self._decode_group([sequences[i] for i in members], places))
        for s, offset in zip(sequences, offsets, strict=False):
            if s.length > 1:
                groups.append(self._prefill_group(s, slice(offset, offset + s.length)))
        return groups

    def _decode_group(self, members: list[PagedSequence], places: Tensor) -> _Group:
        width = max(self._num_blocks(s) for s in members)
        keys = width * self._block_size
        # Padding repeats block 0; the bias hides it as it hides the unused end of the last block.
        tables = [(*s.block_table[: self._num_blocks(s)], *(0,) * (width - self._num_blocks(s))) for s in members]
        ends = torch.tensor([s.start for s in members], device=self._like.device)
        hidden = torch.arange(keys, device=self._like.device) > ends[:, None]
        bias = self._like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        bias = bias.repeat(self._kv_heads, 1).unsqueeze(1)
        return _Group(places, len(members), self._block_rows(tables), ((1, keys, bias),))

    def _prefill_group(self, s: PagedSequence, places: slice) -> _Group:
        tiles = []
        for first in range(0, s.length, QUERY_TILE):
            tokens = min(QUERY_TILE, s.length - first)
            keys = s.start + first + tokens
            hidden = self._like.new_full((tokens, keys), float("-inf")).triu_(s.start + first + 1)
            # Rows are (token, head of the group): each token's mask stands G times.
            tiles.append((tokens, keys, hidden.repeat_interleave(self._head_group, dim=0).unsqueeze(0)))
        return _Group(places, 1, self._block_rows([s.block_table[: self._num_blocks(s)]]), tuple(tiles))

    def _num_blocks(self, s: PagedSequence) -> int:
        return -(-(s.start + s.length) // self._block_size)

    def _block_rows(self, tables: Sequence[Sequence[int]]) -> Tensor:
        heads = torch.arange(2 * self._kv_heads, device=self._like.device)[:, None] * self._blocks
        return (heads + torch.tensor(tables, device=self._like.device).view(1, -1)).flatten()
