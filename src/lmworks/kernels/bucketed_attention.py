"""Causal attention of many short documents by plain batched matrix products, for training on CPU.

Documents are padded on the right to a multiple of 32 tokens and those of one padded length go through
one batched product. Under a causal mask no real token sees the padding, so no further mask is needed.
The probabilities are kept for the backward pass: memory is quadratic in the document's length, which is
why `LONGEST` bounds it. Knows no model and no dispatch (`kernels/attention.py` decides).

Legend: `N` packed tokens, `H` heads, `K` kv heads, `D` head dim, `B` documents × heads of a bucket,
`L` its padded length, `P` padded places of all buckets times heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512
"""Documents above this many tokens are for the fused kernel."""
STEP = 32
"""Padded lengths are multiples of this: shorter steps pad less, longer ones make fewer and larger calls."""


@dataclass(frozen=True)
class Plan:
    """Where each token and head stands in the padded layout `[document, head, place]`, bucket by bucket."""

    buckets: tuple[tuple[int, int], ...]
    """`(B, L)` of each bucket, in the order of the layout."""
    rows: Tensor
    """[P] row `token · H + head` that fills each place; padding repeats a row of the same document."""
    kv_rows: Tensor
    """[P] the same for keys and values, `token · K + kv head`."""
    places: Tensor
    """[N·H] the place of each row: the inverse of `rows` on real tokens."""
    padding: Tensor
    """Places that hold no token."""


@lru_cache(maxsize=16)  # every layer of a step asks for the same plan
def _plan(lengths: tuple[int, ...], heads: int, kv_heads: int) -> Plan:
    size = torch.tensor(lengths)
    start = size.cumsum(0) - size
    padded = (size + STEP - 1) // STEP * STEP
    head = torch.arange(heads)[None, :, None]
    buckets, tokens, kept = [], [], []
    for length in sorted(set(padded.tolist())):
        chosen = padded == length
        place = torch.arange(length)[None, None, :]
        last = size[chosen, None, None] - 1
        token = start[chosen, None, None] + torch.minimum(place, last)
        buckets.append((int(chosen.sum()) * heads, length))
        tokens.append((token * heads + head).flatten())
        kept.append((place <= last).expand(-1, heads, -1).flatten())
    rows, real = torch.cat(tokens), torch.cat(kept)
    places = torch.empty(int(size.sum()) * heads, dtype=torch.int64)
    places[rows[real]] = real.nonzero().squeeze(1)
    kv_rows = rows // heads * kv_heads + rows % heads // (heads // kv_heads)
    return Plan(tuple(buckets), rows, kv_rows, places, (~real).nonzero().squeeze(1))


@lru_cache(maxsize=64)
def _causal_bias(length: int, dtype: torch.dtype) -> Tensor:
    """[L, L] of 0 where attention is allowed and -inf above the diagonal."""
    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)


def bucketed_attention(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Causal attention inside each document; scores take the inputs' type, sums are float32.

    Args:
        query: [N, H, D].
        key: [N, K, D].
        value: [N, K, D].
        lengths: tokens of each document, summing to N.
        scale: multiplies the scores.

    Returns:
        [N, H, D].
    """
    result: Tensor = _BucketedAttention.apply(query, key, value, lengths, scale)  # type: ignore[no-untyped-call]
    return result


class _BucketedAttention(torch.autograd.Function):
    """The forward and backward formulas of softmax attention, bucket by bucket."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        plan = _plan(lengths, query.shape[1], key.shape[1])
        q, k, v = _padded(query, plan.rows), _padded(key, plan.kv_rows), _padded(value, plan.kv_rows)
        out = torch.empty_like(q)
        probabilities = []
        for (count, length), q_, k_, v_, out_ in zip(
            plan.buckets, *(_split(t, plan) for t in (q, k, v, out)), strict=True
        ):
            bias = _causal_bias(length, q.dtype).expand(count, length, length)
            weights = torch.baddbmm(bias, q_, k_.mT, alpha=scale).softmax(-1)
            torch.bmm(weights, v_, out=out_)
            probabilities.append(weights)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.plan, ctx.scale, ctx.kv_heads = plan, scale, key.shape[1]
        return out.index_select(0, plan.places).view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        q, k, v, *probabilities = ctx.saved_tensors
        g = _padded(grad, plan.rows)
        g[plan.padding] = 0  # padding repeats a real row, whose gradient must count once
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        split = (_split(t, plan) for t in (q, k, v, g, dq, dk, dv))
        for weights, q_, k_, v_, g_, dq_, dk_, dv_ in zip(probabilities, *split, strict=True):
            torch.bmm(weights.mT, g_, out=dv_)
            d_weights = torch.bmm(g_, v_.mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            torch.baddbmm(dq_, d_scores, k_, beta=0, alpha=ctx.scale, out=dq_)
            torch.baddbmm(dk_, d_scores.mT, q_, beta=0, alpha=ctx.scale, out=dk_)
        heads, width = grad.shape[1:]
        dq, dk, dv = (t.index_select(0, plan.places).view(-1, heads, width) for t in (dq, dk, dv))
        if ctx.kv_heads < heads:
            dk, dv = (t.view(len(t), ctx.kv_heads, -1, width).sum(2) for t in (dk, dv))
        return dq, dk, dv, None, None


def _padded(x: Tensor, rows: Tensor) -> Tensor:
    """[N, H, D] -> [P, D]."""
    return x.flatten(0, 1).index_select(0, rows)


def _split(x: Tensor, plan: Plan) -> list[Tensor]:
    """[P, D] -> one [B, L, D] view per bucket."""
    parts = torch.split(x, [count * length for count, length in plan.buckets])
    return [part.view(count, length, -1) for part, (count, length) in zip(parts, plan.buckets, strict=True)]
