"""Attention over tokens that lie on several ranks: each rank takes all tokens of some heads (arXiv:2309.14509).

One all-to-all turns a share of the tokens with all heads into all tokens with a share of the heads, any attention of
`kernels/attention.py` runs as on one process, and another all-to-all turns the result back. Knows which tokens lie
where and no model. Legend: `N` own packed tokens, `M` of all ranks, `H` heads, `K` kv heads, `D` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from lmworks.core.errors import ParallelError
from lmworks.kernels.attention import varlen_attention
from lmworks.kernels.scores import DistanceBias, Scores
from lmworks.parallel.exchange import exchange_rows
from lmworks.parallel.ring import Share


def ulysses_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scores: Scores, shares: Sequence[Share],
    group: dist.ProcessGroup, *, prefix_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention inside each document, of the caller's queries to the keys of all ranks.

    Args:
        query: [N, H, D] of the caller's tokens, as `shares` says.
        key: [N, K, D] of the same tokens.
        value: [N, K, Dv].
        cu_seqlens: [documents+1] bounds of all documents.
        scores: any rule.
        shares: the tokens of every rank of the group.
        group: all of its ranks call this.
        prefix_lengths: [documents] tokens at the beginning of each that all of it may see.

    Returns:
        [N, H, Dv].

    Raises:
        ParallelError: the heads do not divide among the ranks.
    """
    ranks, rank = group.size(), dist.get_rank(group)
    require_heads(query.shape[1], key.shape[1], ranks)
    if (copies := ranks // key.shape[1]) > 1:
        key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    order = torch.cat([share.indices for share in shares])  # rows arrive by rank
    back = order.argsort()
    sizes = [len(share) for share in shares]
    q, k, v = (_all_tokens(t, sizes, rank, group).index_select(0, back) for t in (query, key, value))
    heads = slice(rank * q.shape[1], (rank + 1) * q.shape[1])
    own = varlen_attention(q, k, v, cu_seqlens, _of_heads(scores, heads), prefix_lengths=prefix_lengths)
    return _all_heads(own.index_select(0, order), sizes, rank, group)


def require_heads(heads: int, kv_heads: int, ranks: int) -> None:
    """Check that heads divide among the ranks.

    Raises:
        ParallelError: they do not.
    """
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise ParallelError(
            f"{heads} heads with {kv_heads} heads of keys and values cannot go to {ranks} ranks: Ulysses needs ranks "
            "that divide the heads, and that divide the kv heads or are a multiple of them",
            'Choose another `context` degree, or the context method "ring", which takes any',
        )


def _all_tokens(x: Tensor, sizes: Sequence[int], rank: int, group: dist.ProcessGroup) -> Tensor:
    """[N, H, D] -> [M, H / ranks, D], by rank."""
    rows = x.reshape(len(x), len(sizes), -1, x.shape[-1]).transpose(0, 1).flatten(0, 1)
    return exchange_rows(rows, [sizes[rank]] * len(sizes), sizes, group)


def _all_heads(x: Tensor, sizes: Sequence[int], rank: int, group: dist.ProcessGroup) -> Tensor:
    """[M, H / ranks, D] by rank -> [N, H, D]."""
    rows = exchange_rows(x, sizes, [sizes[rank]] * len(sizes), group)
    return rows.view(len(sizes), sizes[rank], *rows.shape[1:]).transpose(0, 1).flatten(1, 2)


def _of_heads(scores: Scores, heads: slice) -> Scores:
    """The rule of some heads."""
    sinks = None if scores.sinks is None else scores.sinks[heads]
    bias = scores.bias
    if isinstance(bias, DistanceBias):
        return replace(scores, sinks=sinks, bias=DistanceBias(bias.slopes[heads]))
    if bias is None:
        return replace(scores, sinks=sinks)
    return replace(scores, sinks=sinks, bias=lambda query, key: bias(query, key)[heads])
