"""FlashAttention's algorithm in plain PyTorch, to be read: tiles, online softmax, recomputed backward.

The scores of a document never stand in memory at once. The forward pass walks over tiles and leaves behind
the output and one log-sum-exp per query; the backward pass computes the tiles again from those (Dao et al.
2022, arXiv:2205.14135; loop order of FlashAttention-2, arXiv:2307.08691). The hardware half of the papers,
tiles that fit the chip's fast memory, is not expressible here: this is for understanding and for tests, and
slower than `kernels/attention.py`. Knows no dispatch.

Legend: `N` packed tokens, `H` heads, `K` kv heads, `G` = H/K, `D` head dim, `T` tokens of a document.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def flash_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float,
    causal: bool = True,
    query_tile: int = 64,
    key_tile: int = 64,
) -> Tensor:
    """Attention inside each document with memory linear in its length; sums are at least float32.

    Args:
        query: [N, H, D].
        key: [N, K, D].
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
        scale: multiplies the scores.
        causal: a token sees only itself and the past.
        query_tile: queries per tile; need not divide the length.
        key_tile: keys per tile.

    Returns:
        [N, H, D].
    """
    bounds = tuple(cu_seqlens.tolist())
    plan = _Plan(bounds, scale, causal, query_tile, key_tile)
    result: Tensor = _FlashAttention.apply(query, key, value, plan)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class ExtraBytes:
    """Memory beyond the query, key, value and output that the caller holds anyway."""

    saved: int
    """Kept from the forward to the backward pass: the log-sum-exp."""
    working: int
    """Most that the forward pass holds at once for one tile: scores, weights and three running sums."""


def flash_attention_extra_bytes(
    tokens: int, heads: int, head_dim: int, *, query_tile: int = 64, key_tile: int = 64, itemsize: int = 4
) -> ExtraBytes:
    """Count what FlashAttention adds; the formula keeps `heads · tokens² · itemsize` of weights instead."""
    scores = 2 * query_tile * key_tile
    running = query_tile * (2 * head_dim + 6)  # output, maximum, sum: the old and the new of each
    return ExtraBytes(heads * tokens * itemsize, heads * (scores + running) * itemsize)


@dataclass(frozen=True)
class _Plan:
    bounds: tuple[int, ...]
    scale: float
    causal: bool
    query_tile: int
    key_tile: int

    def documents(self) -> Iterator[slice]:
        return itertools.starmap(slice, itertools.pairwise(self.bounds))

    def tiles(self, length: int) -> Iterator[tuple[slice, slice]]:
        """(queries, keys) of every tile that holds an allowed score, all keys of a query tile in a row."""
        for q in range(0, length, self.query_tile):
            end = min(q + self.query_tile, length)
            for k in range(0, end if self.causal else length, self.key_tile):
                yield slice(q, end), slice(k, min(k + self.key_tile, length))

    def scores(self, q: Tensor, k: Tensor, rows: slice, columns: slice) -> Tensor:
        """[K, G, rows, columns] of one tile; -inf in the future."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q[:, :, rows].to(wide) @ k[:, :, columns].to(wide).mT).mul_(self.scale)
        if self.causal and columns.stop > rows.start + 1:
            row = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
            scores.masked_fill_(torch.arange(columns.start, columns.stop, device=q.device) > row, float("-inf"))
        return scores


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Plan) -> Tensor:
        kv_heads, wide = key.shape[1], torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query)
        lse = query.new_empty(query.shape[:2], dtype=wide)
        for document in plan.documents():
            q, k, v, o, s = (_by_head(t[document], kv_heads) for t in (query, key, value, out, lse[..., None]))
            for rows, tiles in itertools.groupby(plan.tiles(q.shape[2]), key=lambda tile: tile[0]):
                maximum = q.new_full((*q.shape[:2], rows.stop - rows.start, 1), float("-inf"), dtype=wide)
                total, weighted = torch.zeros_like(maximum), torch.zeros_like(q[:, :, rows], dtype=wide)
                for _, columns in tiles:
                    scores = plan.scores(q, k, rows, columns)
                    higher = torch.maximum(maximum, scores.amax(-1, keepdim=True))
                    weights = scores.sub_(higher).exp_()
                    shrink = (maximum - higher).exp_()  # what was summed so far refers to the lower maximum
                    total = total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
                    weighted = weighted.mul_(shrink).add_(weights @ v[:, :, columns].to(wide))
                    maximum = higher
                o[:, :, rows] = (weighted / total).to(out.dtype)
                s[:, :, rows] = maximum + total.log()
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        plan, kv_heads, wide = ctx.plan, key.shape[1], lse.dtype
        d_query, d_key, d_value = (torch.zeros_like(t, dtype=wide) for t in (query, key, value))
        # Σ_j p_ij ∂L/∂p_ij of the softmax's derivative, which is also ⟨∂L/∂o_i, o_i⟩ and so needs no scores.
        delta = (grad * out).sum(-1, dtype=wide)
        tensors = (query, key, value, grad, lse[..., None], delta[..., None], d_query, d_key, d_value)
        for document in plan.documents():
            q, k, v, g, s, d, dq, dk, dv = (_by_head(t[document], kv_heads) for t in tensors)
            for rows, columns in plan.tiles(q.shape[2]):
                weights = plan.scores(q, k, rows, columns).sub_(s[:, :, rows]).exp_()
                q_, k_, v_, g_ = (
                    t.to(wide) for t in (q[:, :, rows], k[:, :, columns], v[:, :, columns], g[:, :, rows])
                )
                d_scores = (g_ @ v_.mT).sub_(d[:, :, rows]).mul_(weights).mul_(plan.scale)
                dq[:, :, rows] += d_scores @ k_
                dk[:, :, columns] += (d_scores.mT @ q_).sum(1, keepdim=True)
                dv[:, :, columns] += (weights.mT @ g_).sum(1, keepdim=True)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), None


def _by_head(x: Tensor, kv_heads: int) -> Tensor:
    """[T, H or K, D] -> a view [K, G or 1, T, D]: query heads beside the kv head they share."""
    return x.view(len(x), kv_heads, x.shape[1] // kv_heads, x.shape[2]).movedim(0, 2)
