"""Paged attention by batched matrix products of PyTorch: any rule of scores, any device; fast on a CPU.

Scaled dot-product kernels are slow on a CPU when there is one query token per sequence, and so is repeating the key
heads. Here the G query heads of a key head are rows of one matrix, and mask and bias are the addend of the product.
Blocks that a window hides are not gathered. Knows no scheduler and no model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lmworks.kernels.masks import Places
from lmworks.kernels.paged_step import PagedSequence, decoded
from lmworks.kernels.scores import Scores

QUERY_TILE = 64
"""Query tokens per matrix product of a prefill: bounds the scores and skips most of the masked future."""

PADDING_LIMIT = 2
"""Single-token sequences share a product while the longest has at most this many times the shortest's blocks."""


class BatchedAttention:
    """Attention of one step's tokens, planned once for all layers of like shape and mask.

    Args:
        sequences: in the order of the packed tokens; a single-token sequence is cheapest.
    """

    def __init__(self, sequences: Sequence[PagedSequence]) -> None:
        self.sequences = sequences
        self._plans: dict[Hashable, list[_Group]] = {}

    def __call__(self, query: Tensor, cache: Tensor, scores: Scores, value_width: int | None = None) -> Tensor:
        """See `PagedAttention.__call__`."""
        # Layers share a bias by sharing the function, which their stack makes once a step.
        key = cache.shape, query.shape[1], scores.mask, scores.bias
        groups = self._plans.get(key)
        if groups is None:
            groups = self._plans[key] = _Planner(query, cache, scores).plan(self.sequences)
        if len(groups) == 1:
            return _attend(groups[0], query, cache, scores, value_width)
        output = query.new_empty(*query.shape[:2], value_width or query.shape[-1])
        for group in groups:
            output[group.places] = _attend(group, query[group.places], cache, scores, value_width)
        return output


@dataclass(frozen=True)
class _Tile:
    """Queries that go through one product with the same keys."""

    tokens: int
    first: int
    """Key, counted from the first that was gathered."""
    last: int
    addend: Tensor
    """Mask and bias; broadcasts to [K·size, tokens·G, keys]."""


@dataclass(frozen=True)
class _Group:
    """Sequences that go through one product: several with one new token each, or a single one with more."""

    places: Tensor | slice
    """Their places in the packed tokens."""
    size: int
    blocks: Tensor
    """[P·K·size·blocks per sequence] rows of the cache seen as blocks."""
    tiles: tuple[_Tile, ...]


def _attend(group: _Group, query: Tensor, cache: Tensor, scores: Scores, value_width: int | None) -> Tensor:
    """[tokens of the group, H, D] -> [tokens, H, Dv]."""
    planes, kv_heads, blocks, *_ = cache.shape
    heads, head_dim = query.shape[1:]
    held = cache.view(planes * kv_heads * blocks, -1).index_select(0, group.blocks)
    held = decoded(held.view(planes, kv_heads * group.size, -1, cache.shape[-1])).to(query.dtype)
    key, value = held[0], held[-1]
    if value_width is not None and value_width < head_dim:
        value = value[..., :value_width]
    outputs = []
    done = 0
    for tile in group.tiles:
        # [size·tokens, K, G, D] -> [K·size, tokens·G, D]; either size or tokens is 1
        q = query[done * group.size : (done + tile.tokens) * group.size]
        q = q.view(-1, kv_heads, heads // kv_heads, head_dim).transpose(0, 1)
        q = q.reshape(kv_heads * group.size, -1, head_dim)
        weights = _weights(q, key[:, tile.first : tile.last].mT, tile.addend, scores, kv_heads)
        o = torch.bmm(weights, value[:, tile.first : tile.last])
        outputs.append(o.view(kv_heads, group.size * tile.tokens, -1).transpose(0, 1))
        done += tile.tokens
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).reshape(query.shape[0], heads, -1)


def _weights(query: Tensor, key: Tensor, addend: Tensor, scores: Scores, kv_heads: int) -> Tensor:
    """[K·size, tokens·G, D] queries and [K·size, D, keys] -> [K·size, tokens·G, keys] shares of attention."""
    if scores.softcap is None:
        raw = torch.baddbmm(addend, query, key, alpha=scores.scale)
    else:
        raw = torch.bmm(query, key).mul_(scores.scale / scores.softcap).tanh_().mul_(scores.softcap) + addend
    if scores.sinks is None:
        return raw.softmax(-1)
    by_token = raw.view(kv_heads, -1, scores.sinks.numel() // kv_heads, raw.shape[-1])  # [K, size·tokens, G, keys]
    sinks = scores.sinks.to(raw.dtype).view(kv_heads, 1, -1, 1).expand(*by_token.shape[:-1], 1)
    return torch.cat([by_token, sinks], -1).softmax(-1)[..., :-1].reshape(raw.shape)


class _Planner:
    """Lays out one step's sequences for layers of one shape, mask and bias."""

    def __init__(self, query: Tensor, cache: Tensor, scores: Scores) -> None:
        self._like, self._scores = query, scores
        self._planes, self._kv_heads, self._blocks, self._block_size, _ = cache.shape

    def plan(self, sequences: Sequence[PagedSequence]) -> list[_Group]:
        """Groups of sequences that go through products together."""
        offsets = [0, *accumulate(s.length for s in sequences)]
        groups = []
        spans = [self._blocks_of(s) for s in sequences]
        single = sorted((i for i, s in enumerate(sequences) if s.length == 1), key=lambda i: len(spans[i]))
        while single:
            limit = PADDING_LIMIT * len(spans[single[0]])
            members = sorted(i for i in single if len(spans[i]) <= limit)
            single = single[len(members) :]
            places = self._tensor([offsets[i] for i in members])
            groups.append(self._decode_group([sequences[i] for i in members], [spans[i] for i in members], places))
        for s, span, offset in zip(sequences, spans, offsets, strict=False):
            if s.length > 1:
                groups.append(self._prefill_group(s, span, slice(offset, offset + s.length)))
        return groups

    def _blocks_of(self, s: PagedSequence) -> range:
        """Blocks of a sequence's table with keys that some new token may see."""
        # A bias takes one row of key positions for all sequences of a group, which then begin at 0.
        reach = self._scores.mask.reach if self._scores.bias is None else None
        first = 0 if reach is None else max(0, s.start - reach + 1)
        return range(first // self._block_size, -(-s.num_keys // self._block_size))

    def _decode_group(self, members: list[PagedSequence], spans: list[range], places: Tensor) -> _Group:
        width = max(map(len, spans))
        # Padding repeats block 0; the addend hides it as it hides the unused end of the last block.
        tables = [
            (*m.block_table[span.start : span.stop], *(0,) * (width - len(span)))
            for m, span in zip(members, spans, strict=True)
        ]
        keys = width * self._block_size
        firsts = self._tensor([span.start * self._block_size for span in spans])
        addend = self._addend(
            self._tensor([m.start for m in members]),
            firsts[:, None] + torch.arange(keys, device=self._like.device),
            self._tensor([m.num_keys for m in members]),
        )
        addend = addend.expand(self._kv_heads, *addend.shape[1:]).flatten(0, 1)
        return _Group(places, len(members), self._block_rows(tables), (_Tile(1, 0, keys, addend),))

    def _prefill_group(self, s: PagedSequence, span: range, places: slice) -> _Group:
        mask, base = self._scores.mask, span.start * self._block_size
        at = torch.arange(max(s.start + s.length, s.num_keys), device=self._like.device)
        head_group = self._like.shape[1] // self._kv_heads
        tiles = []
        for begin in range(s.start, s.start + s.length, QUERY_TILE):
            end = min(begin + QUERY_TILE, s.start + s.length)
            first = base if mask.reach is None else max(base, begin - mask.reach + 1)
            last = end if mask.causal else s.num_keys
            addend = self._addend(at[begin:end], at[None, first:last], self._tensor([s.num_keys]))
            # Rows are (token, head of the group).
            addend = addend.expand(-1, -1, head_group, -1).flatten(1, 2)
            tiles.append(_Tile(end - begin, first - base, last - base, addend))
        return _Group(places, 1, self._block_rows([s.block_table[span.start : span.stop]]), tuple(tiles))

    def _addend(self, query: Tensor, key: Tensor, num_keys: Tensor) -> Tensor:
        """Positions of queries [Q] and keys [Q or 1, keys] -> mask and bias, [K or 1, Q, G or 1, keys]."""
        seen = self._scores.mask(Places(query[:, None], key))
        if not self._scores.mask.causal:  # a causal one hides what lies after the last key
            seen = seen & (key < num_keys[:, None])
        addend = self._like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))[None, :, None]
        if self._scores.bias is None:
            return addend
        bias = self._scores.bias(query, key[0]).to(addend.dtype)
        return addend + bias.view(self._kv_heads, -1, *bias.shape[1:]).transpose(1, 2)

    def _block_rows(self, tables: Sequence[Sequence[int]]) -> Tensor:
        heads = torch.arange(self._planes * self._kv_heads, device=self._like.device)[:, None] * self._blocks
        return (heads + self._tensor(tables).view(1, -1)).flatten()

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=self._like.device)
