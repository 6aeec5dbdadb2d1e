"""Attention over tokens that lie on several ranks: keys and values travel round a ring, queries stay.

Every rank computes the attention of its queries to the keys it holds, passes the keys on, and merges the parts by
their log-sum-exp (Ring Attention, arXiv:2310.01889; the merge is FlashAttention's, arXiv:2205.14135). The backward pass
sends keys round again together with the gradients that they collect, so that memory stays that of one share. Whoever
cannot see each other is not multiplied: pieces of other documents, and under a causal mask the future.

Knows which tokens lie where and no model. Legend: `N` own packed tokens, `H` heads, `K` kv heads, `G` heads per kv
head, `D` head dim, `a` queries and `b` keys of one product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmworks.core.errors import ParallelError
from lmworks.kernels.masks import Causal, Mask, Places, Prefix
from lmworks.kernels.scores import DistanceBias, Scores

QUERY_TILE = 512
"""Queries per product: bounds the scores that exist at one time."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one document on one rank."""

    document: int
    place: int
    """Position of the first in its document."""
    start: int
    """Index of the first among the rank's own tokens."""
    length: int


@dataclass(frozen=True, eq=False)
class Share:
    """The tokens of one rank."""

    indices: Tensor
    """[N] ascending indices into the whole packed batch."""
    pieces: tuple[Piece, ...]
    """In the order of the tokens."""

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def of_document(self) -> dict[int, list[Piece]]:
        """The pieces of each document."""
        pieces = defaultdict(list)
        for piece in self.pieces:
            pieces[piece.document].append(piece)
        return pieces


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, scores: Scores, shares: Sequence[Share], group: dist.ProcessGroup, *,
    prefix_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention inside each document, of the caller's queries to the keys of all ranks.

    Args:
        query: [N, H, D] of the caller's tokens, as `shares` says.
        key: [N, K, D] of the same tokens.
        value: [N, K, Dv].
        scores: scale, mask, soft cap, sinks, or a bias that falls with the distance.
        shares: the tokens of every rank of the group.
        group: all of its ranks call this.
        prefix_lengths: [documents] tokens at the beginning of each that all of it may see.

    Returns:
        [N, H, Dv]; zero for a query that sees nothing.

    Raises:
        ParallelError: the scores have a trained bias, whose gradient would have to travel too.
    """
    if scores.bias is not None and not isinstance(scores.bias, DistanceBias):
        raise ParallelError(
            "ring attention has no gradient for a trained bias of the scores (T5's)",
            'Choose the context method "ulysses"',
        )
    mask = scores.mask if prefix_lengths is None else scores.mask | Prefix()
    rule = replace(scores, mask=mask, sinks=None)
    ring = _Ring(shares, group, None if prefix_lengths is None else prefix_lengths.tolist())
    result: Tensor = _RingAttention.apply(query, key, value, scores.sinks, rule, ring)  # type: ignore[no-untyped-call]
    return result


class _RingAttention(torch.autograd.Function):
    """Forward: keys and values make one round. Backward: they make another, with their gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, scores: Scores, ring: _Ring
    ) -> Tensor:
        q = _grouped(query, key.shape[1])
        out = q.new_zeros(*q.shape[:-1], value.shape[-1], dtype=torch.float32)
        lse = q.new_full(q.shape[:-1], float("-inf"), dtype=torch.float32)
        held: tuple[Tensor, ...] = (key, value)
        for owner in ring.owners:
            passing = ring.pass_on(held, owner) if owner != ring.owners[-1] else None
            for mine, theirs, places in ring.visible(owner, scores.mask, q.device):
                k, v = (t[theirs].transpose(0, 1) for t in held)
                s = _hidden(_capped(_products(q[:, :, mine], k, scores.scale), scores), scores, places)
                _merge(out[:, :, mine], lse[:, :, mine], s, v)
            held = held if passing is None else passing.wait()
        if sinks is not None:
            whole = torch.logaddexp(lse, sinks.float().view(key.shape[1], -1, 1))
            out *= (lse - whole).exp()[..., None]
            lse = whole
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.scores, ctx.ring = scores, ring
        return _ungrouped(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, out, lse = ctx.saved_tensors
        scores, ring = ctx.scores, ctx.ring
        q, d_out = _grouped(query, key.shape[1]), _grouped(grad, key.shape[1])
        d_q = torch.zeros_like(q, dtype=torch.float32)
        lse = _finite(lse)
        center = (d_out.float() * out.float()).sum(-1)  # Σ p · dp of each query, by which a softmax's gradient falls
        held: tuple[Tensor, ...] = (key, value)
        collected = (torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32))
        for owner in ring.owners:
            passing = ring.pass_on(held, owner) if owner != ring.owners[-1] else None
            for mine, theirs, places in ring.visible(owner, scores.mask, q.device):
                k, v = (t[theirs].transpose(0, 1) for t in held)
                q_part, d_part = q[:, :, mine], d_out[:, :, mine]
                capped = _capped(_products(q_part, k, scores.scale), scores)
                p = (_hidden(capped, scores, places) - lse[:, :, mine, None]).exp()
                d_s = p * (_products(d_part, v, 1.0) - center[:, :, mine, None]) * scores.scale
                if scores.softcap is not None:
                    d_s *= 1 - (capped / scores.softcap).square()
                d_s, p = d_s.to(q.dtype).flatten(1, 2), p.to(grad.dtype).flatten(1, 2)
                d_q[:, :, mine] += (d_s @ k).view_as(q_part)
                for own, weights, rows in zip(collected, (d_s, p), (q_part, d_part), strict=True):
                    own[theirs] += (weights.mT @ rows.flatten(1, 2)).transpose(0, 1)
            # Gradients travel with the keys they belong to; the last hop brings them home.
            collected = ring.pass_on(collected, owner).wait()
            held = held if passing is None else passing.wait()
        d_sinks = None
        if sinks is not None:
            p = (sinks.float().view(key.shape[1], -1, 1) - lse).exp()
            d_sinks = -(p * center).sum(-1).flatten().to(sinks.dtype)
        return (
            _ungrouped(d_q.to(q.dtype)),
            collected[0].to(key.dtype),
            collected[1].to(value.dtype),
            d_sinks,
            None,
            None,
        )


class _Ring:
    """The calling rank's place in the ring and what it sees of the others.

    Args:
        shares: the tokens of every rank.
        group: the ranks.
        prefix_lengths: of each document, None for none.
    """

    def __init__(self, shares: Sequence[Share], group: dist.ProcessGroup, prefix_lengths: list[int] | None) -> None:
        self.shares, self.group, self.prefix_lengths = shares, group, prefix_lengths
        self.rank, self.ranks = dist.get_rank(group), group.size()
        self.owners = [(self.rank - step) % self.ranks for step in range(self.ranks)]
        """Whose keys are here, step by step."""

    def pass_on(self, held: tuple[Tensor, ...], owner: int) -> _Passing:
        """Begin to send what belongs to `owner`'s tokens to the next rank and to receive from the one before."""
        rows = len(self.shares[(owner - 1) % self.ranks])
        sent = [t.contiguous() for t in held]
        received = tuple(t.new_empty(rows, *t.shape[1:]) for t in held)
        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        operations = [dist.P2POp(dist.isend, t, group=self.group, group_peer=after) for t in sent]
        operations += [dist.P2POp(dist.irecv, t, group=self.group, group_peer=before) for t in received]
        return _Passing(dist.batch_isend_irecv(operations), sent, received)

    def visible(self, owner: int, mask: Mask, device: torch.device) -> Iterator[tuple[slice, slice, Places]]:
        """Pairs of own queries and `owner`'s keys of which some see some, with their places."""
        theirs = self.shares[owner].of_document
        for piece in self.shares[self.rank].pieces:
            prefix = None if self.prefix_lengths is None else torch.tensor(self.prefix_lengths[piece.document])
            for first in range(0, piece.length, QUERY_TILE):
                count = min(QUERY_TILE, piece.length - first)
                place, rows = piece.place + first, slice(piece.start + first, piece.start + first + count)
                for keys in theirs.get(piece.document, ()):
                    length = min(keys.length, place + count - keys.place) if mask.causal else keys.length
                    if length <= 0 or (mask.reach is not None and keys.place + length + mask.reach <= place + 1):
                        continue
                    yield (
                        rows,
                        slice(keys.start, keys.start + length),
                        Places(
                            torch.arange(place, place + count, device=device)[:, None],
                            torch.arange(keys.place, keys.place + length, device=device)[None, :],
                            prefix_length=None if prefix is None else prefix.to(device),
                        ),
                    )


@dataclass(frozen=True)
class _Passing:
    """Tensors on their way."""

    works: list[dist.Work]
    sent: list[Tensor]
    """Kept until they have left."""
    received: tuple[Tensor, ...]

    def wait(self) -> tuple[Tensor, ...]:
        """What arrived."""
        for work in self.works:
            work.wait()
        return self.received


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[N, H, D] -> [K, G, N, D]."""
    return x.reshape(len(x), kv_heads, -1, x.shape[-1]).permute(1, 2, 0, 3)


def _ungrouped(x: Tensor) -> Tensor:
    """[K, G, N, D] -> [N, H, D]."""
    return x.permute(2, 0, 1, 3).flatten(1, 2)


def _products(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[K, G, a, D] and [K, b, D] -> [K, G, a, b] float32: heads that share keys go into one product."""
    return (queries.flatten(1, 2) @ keys.mT).view(*queries.shape[:3], -1).float() * scale


def _capped(products: Tensor, scores: Scores) -> Tensor:
    return products if scores.softcap is None else scores.softcap * (products / scores.softcap).tanh()


def _hidden(s: Tensor, scores: Scores, places: Places) -> Tensor:
    """Scores with their bias, and -inf where a query may not see a key."""
    if scores.bias is not None:
        s = s + scores.bias(places.query.flatten(), places.key.flatten()).view_as(s)
    if isinstance(scores.mask, Causal) and places.key[0, -1] <= places.query[0, 0]:
        return s
    return s.masked_fill(~scores.mask(places), float("-inf"))


def _merge(out: Tensor, lse: Tensor, s: Tensor, values: Tensor) -> None:
    """Add what the keys of some scores contribute, in place.

    Args:
        out: [K, G, a, Dv] float32, attention to the keys so far.
        lse: [K, G, a] float32, log of the sum of their exponentials.
        s: [K, G, a, b] float32 scores of further keys.
        values: [K, b, Dv] of those.
    """
    whole = torch.logaddexp(lse, s.logsumexp(-1))
    finite = _finite(whole)
    out *= (lse - finite).exp()[..., None]
    weights = (s - finite[..., None]).exp().to(values.dtype)
    out += (weights.flatten(1, 2) @ values).view_as(out)
    lse.copy_(whole)


def _finite(lse: Tensor) -> Tensor:
    """So that exp(-inf - lse) is 0 where nothing is seen, and not NaN."""
    return lse.clamp(min=torch.finfo(lse.dtype).min)
