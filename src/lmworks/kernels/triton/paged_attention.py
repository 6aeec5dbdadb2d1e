"""Attention over the paged cache on a GPU: one kernel for decoding, chunks of prompts and verified guesses.

A program computes a tile of new tokens of one sequence for the query heads that share a key head, and reads each key
once for all of them, with the softmax taken on the way (FlashAttention, arXiv:2205.14135). Where there are few new
tokens to a sequence, its keys are divided among programs in pieces of a fixed length, which a second kernel joins
(Flash-Decoding): piece by piece in order, so that a result depends neither on the rest of the batch nor on how long
the table is. The formula is `kernels.paged_attention.paged_attention_reference`. Knows no scheduler and no model.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmworks.kernels.triton.arithmetic import tanh
from lmworks.kernels.triton.launching import next_power, product_type

SPLIT_KEYS = 256
"""Keys to a program where a sequence's keys are divided; a constant, or batches would change results."""
FEW_TOKENS = 8
"""New tokens to a sequence, on average, up to which its keys are divided."""
TILE_ROWS = 64
"""New tokens times query heads to a program, where there are as many; half of it for heads of more than `WIDE`."""
WIDE = 512
"""Bytes of a head's vector, beyond which tiles are smaller: they must fit into 99 KiB."""
MANY = 64 * 128
"""Sums of a tile from which on eight warps share them."""
LEAST_ROWS = 16
"""Rows that a matrix product of a GPU has at least."""

HIDDEN = tl.constexpr(-1.0e30)
"""Instead of minus infinity, whose difference from itself is not a number."""


def paged_attention(
    query: Tensor, cache: Tensor, block_tables: Tensor, shares: Tensor, scale: float, softcap: float, window: int,
    sinks: Tensor | None, slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attend; the step's own keys and values must be in the cache already.

    Args:
        query: [N, H, D] of the packed tokens, float32, bfloat16 or float16.
        cache: [2, K, blocks, block_size, D] of any strides but the last's, which is 1.
        block_tables: [S, W] int32.
        shares: [S, 4] int32: start, length, first packed token, and 0 or the number of keys that all tokens see.
        scale: multiplies the scores.
        softcap: of the scores, 0 for none.
        window: places a query sees back from its own, 0 for all.
        sinks: [H] float32, or None.
        slopes: [H] float32 of ALiBi, or None.

    Returns:
        [N, H, D] in the type of the queries.
    """
    count, heads, width = query.shape
    _, kv_heads, _, block_size, _ = cache.shape
    sequences, groups = len(block_tables), heads // kv_heads
    query = query if query.stride(2) == 1 else query.contiguous()
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    few = count <= FEW_TOKENS * sequences
    rows = TILE_ROWS if next_power(width) * cache.dtype.itemsize <= WIDE else TILE_ROWS // 2
    tokens = max(1, rows // next_power(groups))
    if few:
        tokens = min(tokens, next_power(-(-count // sequences)))
    tiles = sequences if count == sequences else count // tokens + sequences
    splits = -(-block_tables.shape[1] * block_size // SPLIT_KEYS) if few else 1
    partial = sums = None
    if splits > 1:
        partial = query.new_empty((tiles, heads, splits, tokens, width), dtype=torch.float32)
        sums = query.new_empty((tiles, heads, splits, tokens, 2), dtype=torch.float32)
    block_rows = max(LEAST_ROWS, next_power(tokens * groups))
    shape: dict[str, Any] = {
        "GROUPS": groups, "WIDTH": width, "BLOCK_WIDTH": max(LEAST_ROWS, next_power(width)), "TOKENS": tokens,
        "KEYS": _keys(width, cache.dtype), "SPLIT_KEYS": SPLIT_KEYS if splits > 1 else 0, "WINDOW": window,
        "SINGLE": count == sequences,
    }  # fmt: skip
    _attend_tile[(tiles, kv_heads, splits)](
        query, cache[0], cache[1], output, partial, sums, block_tables, shares, slopes,
        sinks if splits == 1 else None,
        sequences, splits, scale, softcap,
        query.stride(0), query.stride(1), *cache.stride()[1:4], block_tables.stride(0),
        BLOCK_SIZE=block_size, ROWS=block_rows, SOFTCAP=softcap > 0, PRODUCT=product_type(cache.dtype), **shape,
        num_warps=8 if block_rows * width >= MANY else 4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _join_splits[(tiles, heads, tokens)](
            output, partial, sums, shares, sinks, sequences, splits, **shape, num_warps=1
        )
    return output


def write_cache(cache: Tensor, key: Tensor, value: Tensor, block_tables: Tensor, shares: Tensor) -> None:
    """Store keys and values of the step's new tokens at their places.

    Args:
        cache: as in `paged_attention`.
        key: [N, K, D], and
        value: of any floating type.
        block_tables: as in `paged_attention`, as the following.
        shares: see there.
    """
    count, kv_heads, width = key.shape
    key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (key, value))
    _write_token[(count, kv_heads)](
        cache[0], cache[1], key, value, block_tables, shares, len(block_tables),
        key.stride(0), key.stride(1), value.stride(0), value.stride(1), *cache.stride()[1:4], block_tables.stride(0),
        WIDTH=width, BLOCK_WIDTH=next_power(width), BLOCK_SIZE=cache.shape[3], SINGLE=count == len(block_tables),
        num_warps=1,
    )  # fmt: skip


def _keys(width: int, dtype: torch.dtype) -> int:
    """Keys of one turn of the loop: two tiles of keys and values are held at a time."""
    size = next_power(width) * dtype.itemsize
    return 64 if size <= 256 else 32 if size <= 512 else 16


@triton.jit
def _sequence_of(shares: tl.tensor, tile: tl.tensor, num_sequences: tl.tensor, TOKENS: tl.constexpr) -> tl.tensor:
    """The sequence that a tile belongs to; each has as many as it may need, and one more."""
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(shares + middle * 4 + 2) // TOKENS + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _place_of(
    shares: tl.tensor, tile: tl.tensor, num_sequences: tl.tensor, TOKENS: tl.constexpr, SINGLE: tl.constexpr
) -> tl.tensor:
    """Of a tile: its sequence, and which of the sequence's new tokens is its first."""
    if SINGLE:
        sequence = tile
        offset = 0
    else:
        sequence = _sequence_of(shares, tile, num_sequences, TOKENS)
        offset = (tile - tl.load(shares + sequence * 4 + 2) // TOKENS - sequence) * TOKENS
    return sequence, offset


@triton.jit
def _keys_of(
    shares: tl.tensor,
    sequence: tl.tensor,
    offset: tl.tensor,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tl.tensor:
    """Of a tile: the first key that is read, and the one after the last."""
    start = tl.load(shares + sequence * 4)
    length = tl.load(shares + sequence * 4 + 1)
    seen = tl.load(shares + sequence * 4 + 3)
    end = tl.where(seen > 0, seen, tl.minimum(start + length, start + offset + TOKENS))
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(start + offset - WINDOW + 1, 0) // KEYS * KEYS
    return begin, end


@triton.jit(do_not_specialize=["num_sequences", "num_splits", "table_row"])
def _attend_tile(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, output: tl.tensor, partial: tl.tensor, sums: tl.tensor,
    tables: tl.tensor, shares: tl.tensor, slopes: tl.tensor, sinks: tl.tensor, num_sequences: tl.tensor,
    num_splits: tl.tensor, scale: tl.tensor, softcap: tl.tensor, query_token: tl.tensor, query_head: tl.tensor,
    cache_head: tl.tensor, cache_block: tl.tensor, cache_slot: tl.tensor, table_row: tl.tensor, GROUPS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, SPLIT_KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINGLE: tl.constexpr,
    PRODUCT: tl.constexpr,
) -> None:  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, offset = _place_of(shares, tile, num_sequences, TOKENS, SINGLE)
    start = tl.load(shares + sequence * 4)
    length = tl.load(shares + sequence * 4 + 1)
    if offset >= length:
        return
    begin, end = _keys_of(shares, sequence, offset, TOKENS, KEYS, WINDOW)
    if SPLIT_KEYS > 0:
        begin = tl.maximum(begin, split * SPLIT_KEYS)
        end = tl.minimum(end, (split + 1) * SPLIT_KEYS)
        if begin >= end:
            return

    # Row r is the r // GROUPS-th token's r % GROUPS-th head.
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_WIDTH)
    token = row // GROUPS
    head = kv_head * GROUPS + row % GROUPS
    real = (token < TOKENS) & (offset + token < length)
    inside = column < WIDTH
    packed = (tl.load(shares + sequence * 4 + 2) + offset + token).to(tl.int64)
    place = start + offset + token
    seen = tl.load(shares + sequence * 4 + 3)
    last = tl.where(seen > 0, seen - 1, place)
    q = tl.load(
        query + packed[:, None] * query_token + head[:, None] * query_head + column[None, :],
        mask=real[:, None] & inside[None, :], other=0.0,
    ).to(PRODUCT)  # fmt: skip
    table = tables + sequence.to(tl.int64) * table_row
    keys += kv_head.to(tl.int64) * cache_head
    values += kv_head.to(tl.int64) * cache_head
    if slopes is not None:
        slope = tl.load(slopes + head, mask=real, other=0.0)

    best = tl.full((ROWS,), HIDDEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, BLOCK_WIDTH), tl.float32)
    for first in range(begin, end, KEYS):
        key = first + tl.arange(0, KEYS)
        held = key < end
        block = tl.load(table + key // BLOCK_SIZE, mask=held, other=0).to(tl.int64)
        at = block * cache_block + (key % BLOCK_SIZE) * cache_slot
        k = tl.load(keys + at[None, :] + column[:, None], mask=held[None, :] & inside[:, None], other=0.0)
        score = tl.dot(q, k.to(PRODUCT), input_precision="ieee") * scale
        if SOFTCAP:
            score = softcap * tanh(score / softcap)
        if slopes is not None:
            score -= slope[:, None] * tl.abs(place[:, None] - key[None, :]).to(tl.float32)
        shown = held[None, :] & (key[None, :] <= last[:, None])
        if WINDOW > 0:
            shown = shown & (place[:, None] - key[None, :] < WINDOW)
        score = tl.where(shown, score, HIDDEN)
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.where(shown, tl.exp(score - higher[:, None]), 0.0)
        shrink = tl.exp(best - higher)
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(values + at[:, None] + column[None, :], mask=held[:, None] & inside[None, :], other=0.0)
        mean = mean * shrink[:, None] + tl.dot(weight.to(PRODUCT), v.to(PRODUCT), input_precision="ieee")
        best = higher

    kept = real[:, None] & inside[None, :]
    heads = tl.num_programs(1) * GROUPS
    if SPLIT_KEYS > 0:
        at = ((tile.to(tl.int64) * heads + head) * num_splits + split) * TOKENS + token
        tl.store(partial + at[:, None] * WIDTH + column[None, :], mean, mask=kept)
        tl.store(sums + at * 2, best, mask=real)
        tl.store(sums + at * 2 + 1, total, mask=real)
    else:
        if sinks is not None:
            sink = tl.load(sinks + head, mask=real, other=HIDDEN)
            higher = tl.maximum(best, sink)
            total = total * tl.exp(best - higher) + tl.exp(sink - higher)
            mean = mean * tl.exp(best - higher)[:, None]
        mean = mean / tl.where(total > 0, total, 1.0)[:, None]
        at = (packed * heads + head) * WIDTH
        tl.store(output + at[:, None] + column[None, :], mean.to(output.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["num_sequences", "num_splits"])
def _join_splits(
    output: tl.tensor, partial: tl.tensor, sums: tl.tensor, shares: tl.tensor, sinks: tl.tensor,
    num_sequences: tl.tensor, num_splits: tl.tensor, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, TOKENS: tl.constexpr, KEYS: tl.constexpr, SPLIT_KEYS: tl.constexpr,
    WINDOW: tl.constexpr, SINGLE: tl.constexpr,
) -> None:  # fmt: skip
    tile, head, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, offset = _place_of(shares, tile, num_sequences, TOKENS, SINGLE)
    if offset + token >= tl.load(shares + sequence * 4 + 1):
        return
    begin, end = _keys_of(shares, sequence, offset, TOKENS, KEYS, WINDOW)
    column = tl.arange(0, BLOCK_WIDTH)
    inside = column < WIDTH
    first = (tile.to(tl.int64) * tl.num_programs(1) + head) * num_splits * TOKENS + token
    best = HIDDEN
    total = 0.0
    if sinks is not None:
        best = tl.load(sinks + head)
        total = 1.0
    mean = tl.zeros((BLOCK_WIDTH,), tl.float32)
    for split in range(begin // SPLIT_KEYS, tl.cdiv(end, SPLIT_KEYS)):
        at = first + split * TOKENS
        part = tl.load(partial + at * WIDTH + column, mask=inside, other=0.0)
        its_best = tl.load(sums + at * 2)
        higher = tl.maximum(best, its_best)
        shrink = tl.exp(best - higher)
        share = tl.exp(its_best - higher)
        total = total * shrink + tl.load(sums + at * 2 + 1) * share
        mean = mean * shrink + part * share
        best = higher
    packed = tl.load(shares + sequence * 4 + 2) + offset + token
    at = (packed.to(tl.int64) * tl.num_programs(1) + head) * WIDTH
    tl.store(output + at + column, (mean / tl.where(total > 0, total, 1.0)).to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_sequences", "table_row"])
def _write_token(
    keys: tl.tensor, values: tl.tensor, key: tl.tensor, value: tl.tensor, tables: tl.tensor, shares: tl.tensor,
    num_sequences: tl.tensor, key_token: tl.tensor, key_head: tl.tensor, value_token: tl.tensor, value_head: tl.tensor,
    cache_head: tl.tensor, cache_block: tl.tensor, cache_slot: tl.tensor, table_row: tl.tensor, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, SINGLE: tl.constexpr,
) -> None:  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    low = token
    if not SINGLE:  # the last sequence that begins no later
        low = 0
        high = num_sequences
        while low < high:
            middle = (low + high) // 2
            if tl.load(shares + middle * 4 + 2) <= token:
                low = middle + 1
            else:
                high = middle
        low -= 1
    sequence = low
    place = tl.load(shares + sequence * 4) + token - tl.load(shares + sequence * 4 + 2)
    block = tl.load(tables + sequence * table_row + place // BLOCK_SIZE).to(tl.int64)
    column = tl.arange(0, BLOCK_WIDTH)
    inside = column < WIDTH
    at = head * cache_head + block * cache_block + (place % BLOCK_SIZE) * cache_slot + column
    k = tl.load(key + token * key_token + head * key_head + column, mask=inside)
    v = tl.load(value + token * value_token + head * value_head + column, mask=inside)
    tl.store(keys + at, k.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + at, v.to(values.dtype.element_ty), mask=inside)
