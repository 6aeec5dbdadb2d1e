"""Attention over packed documents: the formula, and the fast paths that agree with it.

Knows no cache and no model. Legend: `N` packed tokens, `H` heads, `K` kv heads, `D` head dim.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.kernels.bucketed_attention import LONGEST, bucketed_attention


def varlen_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, scale: float, causal: bool = True
) -> Tensor:
    """softmax(q kᵀ · scale) v under one N×N mask of "same document, not in the future"; the oracle.

    Shapes as in `varlen_attention`.
    """
    n, heads, kv_heads = query.shape[0], query.shape[1], key.shape[1]
    place = torch.arange(n, device=query.device)
    document = torch.searchsorted(cu_seqlens[1:].to(place.dtype), place, right=True)
    allowed = document[:, None] == document[None, :]
    if causal:
        allowed &= place[:, None] >= place[None, :]
    key, value = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (key, value))
    scores = torch.einsum("nhd,mhd->hnm", query, key) * scale
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, value)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, scale: float, causal: bool = True
) -> Tensor:
    """Attention inside each document of a packed batch, no work spent across documents.

    Training on CPU with documents of up to 512 tokens takes plain matrix products over buckets of like
    lengths (`bucketed_attention`), whose backward is several times as fast there as the fused one. All
    else takes torch's fused attention: documents of one length in one batched call, so a dense `[B, T]`
    batch costs what it would without packing, ragged ones document by document.

    Args:
        query: [N, H, D].
        key: [N, K, D].
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
        scale: multiplies the scores.
        causal: a token sees only itself and the past.

    Returns:
        [N, H, D].
    """
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    if causal and query.device.type == "cpu" and torch.is_grad_enabled() and max(lengths) <= LONGEST:
        return bucketed_attention(query, key, value, tuple(lengths), scale)
    if len(set(lengths)) == 1:
        q, k, v = (t.reshape(len(lengths), lengths[0], *t.shape[1:]).transpose(1, 2) for t in (query, key, value))
        return _sdpa(q, k, v, scale, causal).transpose(1, 2).flatten(0, 1)
    outputs = []
    for q, k, v in zip(*(torch.split(t, lengths) for t in (query, key, value)), strict=True):
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        outputs.append(_sdpa(q, k, v, scale, causal).squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """[B, H, T, D] attention; grouped heads are expanded, which on CPU is faster than `enable_gqa`."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
