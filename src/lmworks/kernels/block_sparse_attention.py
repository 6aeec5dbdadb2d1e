"""Attention over chosen blocks of keys: Longformer's and BigBird's patterns as one layout, one computation.

A layout lists which blocks of keys each block of queries reads; rows that read equally many go through one fused
call. Time and memory follow the number of listed blocks. Knows no learned parameter.

Legend: `N` packed tokens, `H` heads, `K` kv heads, `D` head dim, `S` block size, `C` blocks, `P` listed pairs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError


@dataclass(frozen=True)
class DocumentBlocks:
    """A packed batch cut into blocks of `S` tokens; every document begins a block of its own."""

    tokens: Tensor
    """[C, S] packed index of each place; places past a document's end repeat its last token."""
    real: Tensor
    """[C, S] whether the place holds a token of its own."""
    document: Tensor
    """[C] the document of each block."""
    counts: Tensor
    """[documents] blocks of each document."""

    @property
    def first(self) -> Tensor:
        """[documents] the first block of each document."""
        return self.counts.cumsum(0) - self.counts

    @property
    def places(self) -> Tensor:
        """[N] the place of each token, counting row by row: the inverse of `tokens`."""
        return self.real.flatten().nonzero().squeeze(1)

    def cut(self, x: Tensor) -> Tensor:
        """[N, ...] -> [C, S, ...]."""
        return take(x, self.tokens)

    def join(self, x: Tensor) -> Tensor:
        """[C, S, ...] -> [N, ...]: undoes `cut`."""
        return x.flatten(0, 1).index_select(0, self.places)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], by the indexing whose backward pass is fast."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:])


def document_blocks(cu_seqlens: Tensor, size: int) -> DocumentBlocks:
    """Cut documents at `cu_seqlens` [documents+1] into blocks of `size` tokens.

    Raises:
        ConfigError: a size below one.
    """
    if size < 1:
        raise ConfigError(f"a block of {size} tokens holds nothing", "Give a block size of at least 1")
    device = cu_seqlens.device
    start, length = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    counts = (length + size - 1) // size
    document = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    rank = torch.arange(len(document), device=device) - (counts.cumsum(0) - counts)[document]
    place = rank[:, None] * size + torch.arange(size, device=device)
    last = (length[document] - 1)[:, None]
    return DocumentBlocks(start[document][:, None] + torch.minimum(place, last), place <= last, document, counts)


@dataclass(frozen=True)
class BlockLayout:
    """Which blocks of keys each block of queries reads, and which tokens inside them."""

    blocks: DocumentBlocks
    pairs: Tensor
    """[2, P] a block of queries and one of keys in the same document, each pair once, sorted."""
    causal: bool
    window: int | None = None
    """Tokens seen on either side inside the listed blocks; None: all of them."""
    is_global: Tensor | None = None
    """[N] tokens that see all and are seen by all, whatever the window."""

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether packed token `query` may see `key`, broadcast, given that their blocks are listed."""
        distance = query - key
        allowed = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is None:
            return allowed
        near = distance.abs() <= self.window
        return allowed & (near if self.is_global is None else near | self.is_global[query] | self.is_global[key])

    def mask(self) -> Tensor:
        """[N, N] the same as one dense mask, for the reference."""
        count, size = self.blocks.tokens.shape
        block = self.blocks.places // size
        token = torch.arange(len(block), device=block.device)
        listed = torch.zeros(count, count, dtype=torch.bool, device=block.device)
        listed[self.pairs[0], self.pairs[1]] = True
        return listed[block[:, None], block] & self.sees(token[:, None], token)


def longformer_layout(
    cu_seqlens: Tensor, *, window: int, is_global: Tensor | None = None, causal: bool = False, block_size: int = 64
) -> BlockLayout:
    """A sliding window and global tokens (Longformer, arXiv:2004.05150).

    Args:
        cu_seqlens: [documents+1] int32, from 0 to N.
        window: tokens seen on either side, half of Hugging Face's `attention_window`.
        is_global: [N] bool, tokens that see their whole document and are seen by all of it.
        causal: nothing sees the future, global tokens neither.
        block_size: tokens per block; affects speed alone.

    Raises:
        ConfigError: a negative window, or an empty block.
    """
    if window < 0:
        raise ConfigError(f"a window of {window} tokens is negative", "Give 0 (itself alone) or more")
    blocks = document_blocks(cu_seqlens, block_size)
    pairs = [_near(blocks, -(-window // block_size))]
    if is_global is not None:
        pairs += _crosses(blocks, (is_global[blocks.tokens] & blocks.real).any(1).nonzero().squeeze(1))
    return BlockLayout(blocks, _in_order(pairs, causal), causal, window, is_global)


def bigbird_layout(
    cu_seqlens: Tensor,
    *,
    block_size: int = 64,
    num_random_blocks: int = 3,
    window_blocks: int = 1,
    global_blocks: tuple[int, ...] = (0, -1),
    causal: bool = False,
    seed: int = 0,
) -> BlockLayout:
    """Neighboring, global and random blocks (BigBird, arXiv:2007.14062).

    The random blocks of a document depend on its length and the seed, never on its neighbors in the batch;
    causal ones without global blocks counted from the end stay the same as the document grows.

    Args:
        cu_seqlens: [documents+1] int32, from 0 to N.
        block_size: tokens per block, the grain of the pattern.
        num_random_blocks: further blocks each block reads, as far as its document has them.
        window_blocks: blocks read on either side.
        global_blocks: blocks of each document that read all and are read by all; negative from the end.
        causal: nothing sees the future.
        seed: of the random blocks.

    Raises:
        ConfigError: an empty block.
    """
    blocks, device = document_blocks(cu_seqlens, block_size), cu_seqlens.device
    chosen, drawn = [], []
    for start, count in zip(blocks.first.tolist(), blocks.counts.tolist(), strict=True):
        everywhere = tuple(sorted({g % count for g in global_blocks if -count <= g < count}))
        chosen += [start + g for g in everywhere]
        drawn.append(start + _random_pairs(count, num_random_blocks, window_blocks, everywhere, causal, seed))
    crosses = _crosses(blocks, torch.tensor(chosen, dtype=torch.int64, device=device))
    pairs = [_near(blocks, window_blocks), torch.cat(drawn, 1).to(device), *crosses]
    return BlockLayout(blocks, _in_order(pairs, causal), causal)


def block_sparse_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float
) -> Tensor:
    """softmax(q kᵀ · scale) v where `mask` [N, N] holds; the oracle. Shapes as in `block_sparse_attention`."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    scores = torch.einsum("nhd,mhd->hnm", query, key) * scale
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~mask, float("-inf")).softmax(-1), value)


def block_sparse_attention(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, *, scale: float) -> Tensor:
    """Attention that computes only the blocks its layout lists.

    Args:
        query: [N, H, D].
        key: [N, K, D].
        value: [N, K, D].
        layout: of the same packed documents.
        scale: multiplies the scores.

    Returns:
        [N, H, D].
    """
    blocks, groups = layout.blocks, query.shape[1] // key.shape[1]
    counts = torch.bincount(layout.pairs[0], minlength=len(blocks.tokens))
    begin = counts.cumsum(0) - counts
    outputs, rows = [], []
    for count in torch.unique(counts).tolist():
        row = (counts == count).nonzero().squeeze(1)
        listed = layout.pairs[1][begin[row][:, None] + torch.arange(count, device=row.device)]
        q_tokens, k_tokens = blocks.tokens[row], blocks.tokens[listed].flatten(1)
        allowed = layout.sees(q_tokens[:, :, None], k_tokens[:, None, :]) & blocks.real[listed].flatten(1)[:, None, :]
        # [rows, S, K·groups, D] -> [rows, K, groups·S, D]: heads of a group are further queries of their kv head.
        q = take(query, q_tokens).view(*q_tokens.shape, -1, groups, query.shape[2]).permute(0, 2, 3, 1, 4).flatten(2, 3)
        k, v = (take(t, k_tokens).transpose(1, 2) for t in (key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed.repeat(1, groups, 1)[:, None], scale=scale)
        outputs.append(out.view(*out.shape[:2], groups, -1, out.shape[3]).permute(0, 3, 1, 2, 4).flatten(2, 3))
        rows.append(row)
    return blocks.join(torch.cat(outputs).index_select(0, torch.cat(rows).argsort()))


def _in_order(pairs: list[Tensor], causal: bool) -> Tensor:
    """[2, P] each pair once, by query and key."""
    both = torch.cat(pairs, 1)
    return torch.unique(both[:, both[1] <= both[0]] if causal else both, dim=1)


def _near(blocks: DocumentBlocks, reach: int) -> Tensor:
    """[2, pairs] of blocks of one document at most `reach` apart."""
    count, reach = len(blocks.document), min(reach, int(blocks.counts.max()))
    query = torch.arange(count, device=blocks.document.device)[:, None].expand(-1, 2 * reach + 1)
    key = query + torch.arange(-reach, reach + 1, device=query.device)
    inside = (key >= 0) & (key < count) & (blocks.document[key.clamp(0, count - 1)] == blocks.document[query])
    return torch.stack((query[inside], key[inside]))


def _crosses(blocks: DocumentBlocks, chosen: Tensor) -> list[Tensor]:
    """[2, pairs] of each chosen block with all of its document, both ways."""
    document = blocks.document[chosen]
    count = blocks.counts[document]
    mine = torch.repeat_interleave(chosen, count)
    rank = torch.arange(len(mine), device=mine.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
    other = torch.repeat_interleave(blocks.first[document], count) + rank
    return [torch.stack((mine, other)), torch.stack((other, mine))]


@lru_cache(maxsize=256)  # every layer and step asks for the same lengths
def _random_pairs(count: int, number: int, reach: int, everywhere: tuple[int, ...], causal: bool, seed: int) -> Tensor:
    """[2, pairs] of each of `count` blocks with random ones that neither window nor global blocks give it."""
    draw = random.Random(seed)
    pairs = []
    for row in range(count):
        limit = row + 1 if causal else count
        taken = sorted({b for b in (*everywhere, *range(row - reach, row + reach + 1)) if 0 <= b < limit})
        free = limit - len(taken)
        for pick in draw.sample(range(free), min(number, free)):
            for block in taken:  # ascending: step over what is taken already
                pick += block <= pick
            pairs.append((row, pick))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
