"""Attention over packed documents: the formula, and the fast paths that agree with it.

Knows no cache and no model. Legend: `N` packed queries, `M` packed keys, `H` heads, `K` kv heads, `D` head dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.kernels.bucketed_attention import LONGEST, bucketed_attention
from lmworks.kernels.causal_attention import attends_natively, causal_attention
from lmworks.kernels.masks import Causal, Document, Full, Places, Prefix
from lmworks.kernels.scores import Scores, attention_formula

QUERY_TILE = 256
"""Queries per product under a mask that hides whole keys: bounds the mask, and skips what no query of a tile sees."""


def varlen_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scores: Scores, *,
    key_cu_seqlens: Tensor | None = None, prefix_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The formula under one N×M mask that keeps documents apart; the oracle. Arguments as in `varlen_attention`."""
    document, place = _documents(cu_seqlens, query.shape[0])
    key_document, key_place = _documents(cu_seqlens if key_cu_seqlens is None else key_cu_seqlens, key.shape[0])
    prefix = None if prefix_lengths is None else prefix_lengths[document][:, None]
    places = Places(place[:, None], key_place[None, :], document[:, None], key_document[None, :], prefix)
    rule = _rule(scores, crossed=key_cu_seqlens is not None, prefixed=prefix is not None)
    q, k, v = (t.transpose(0, 1) for t in (query, *_expanded(key, value, query.shape[1], dim=1)))
    return attention_formula(q, k, v, replace(rule, mask=Document() & rule.mask), places).transpose(0, 1)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scores: Scores, *,
    key_cu_seqlens: Tensor | None = None, prefix_lengths: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention inside each document of a packed batch, no work spent across documents.

    Training on CPU with causal documents takes a native operation in bfloat16 (`causal_attention`), and for up to
    512 tokens otherwise plain matrix products over buckets of like lengths (`bucketed_attention`); both are several
    times as fast there as torch's fused attention. That takes all else: documents of one length in one batched call,
    so a dense `[B, T]` batch costs what it would without packing, ragged ones document by document. Windows are cut
    into tiles of queries, each with the keys it can reach. A soft cap or sinks, which the fused call has not, take
    the formula, tile by tile; so does a bias on CPU.

    Args:
        query: [N, H, D].
        key: [M, K, D].
        value: [M, K, Dv].
        cu_seqlens: [documents+1] int32, from 0 to N.
        scores: scale, mask, and whatever else precedes the softmax.
        key_cu_seqlens: [documents+1] int32, from 0 to M, where keys are another sequence than queries
            (cross-attention); all keys of a document are seen then. None: M = N.
        prefix_lengths: [documents] tokens at the beginning of each that all of it may see.

    Returns:
        [N, H, Dv].
    """
    lengths = cu_seqlens.diff().tolist()
    key_lengths = lengths if key_cu_seqlens is None else key_cu_seqlens.diff().tolist()
    rule = _rule(scores, crossed=key_cu_seqlens is not None, prefixed=prefix_lengths is not None)
    if (
        rule.plain and isinstance(rule.mask, Causal) and query.device.type == "cpu"
        and torch.is_grad_enabled() and value.shape[-1] == key.shape[-1]
    ):  # fmt: skip
        if attends_natively(query, key, value):
            return causal_attention(query, key, value, cu_seqlens, rule.scale)
        if max(lengths) <= LONGEST:
            return bucketed_attention(query, key, value, tuple(lengths), rule.scale)
    if len(set(lengths)) == 1 and len(set(key_lengths)) == 1:
        q, k, v = (
            t.view(len(lengths), n[0], *t.shape[1:]).transpose(1, 2)
            for t, n in ((query, lengths), (key, key_lengths), (value, key_lengths))
        )
        return _attend(q, k, v, rule, prefix_lengths).transpose(1, 2).flatten(0, 1)
    parts = (torch.split(query, lengths), torch.split(key, key_lengths), torch.split(value, key_lengths))
    outputs = []
    for i, document in enumerate(zip(*parts, strict=True)):
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in document)
        prefix = None if prefix_lengths is None else prefix_lengths[i : i + 1]
        outputs.append(_attend(q, k, v, rule, prefix).squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, scores: Scores, prefix_lengths: Tensor | None) -> Tensor:
    """[B, H, Q, D] documents of one length -> [B, H, Q, Dv]."""
    key, value = _expanded(key, value, query.shape[1], dim=1)
    if scores.plain and isinstance(scores.mask, Causal | Full):
        causal = isinstance(scores.mask, Causal)
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scores.scale)
    prefix = None if prefix_lengths is None else prefix_lengths[:, None, None]
    causal, reach = scores.mask.causal, scores.mask.reach
    outputs = []
    for start in range(0, query.shape[2], QUERY_TILE):
        q = query[:, :, start : start + QUERY_TILE]
        stop = start + q.shape[2]
        first = 0 if reach is None else max(0, start - reach + 1)
        last = stop if causal else key.shape[2]
        k, v = key[:, :, first:last], value[:, :, first:last]
        at = torch.arange(max(stop, last), device=q.device)
        places = Places(at[start:stop, None], at[None, first:last], prefix_length=prefix)
        outputs.append(_tile(q, k, v, scores, places))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _tile(query: Tensor, key: Tensor, value: Tensor, scores: Scores, places: Places) -> Tensor:
    on_cpu = query.device.type == "cpu"  # where the fused call is slower with a bias
    if scores.softcap is not None or scores.sinks is not None or (scores.bias is not None and on_cpu):
        return attention_formula(query, key, value, scores, places)
    bias = scores.mask(places).unsqueeze(-3)
    if scores.bias is not None:
        added = scores.bias(places.query.flatten(), places.key.flatten()).to(query.dtype)
        bias = added.masked_fill(~bias, float("-inf"))
    # With fewer dimensions than the query a mask is not fused on CPU: twice the time, and every weight is kept.
    bias = bias if bias.ndim == query.ndim else bias.unsqueeze(0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scores.scale)


def _rule(scores: Scores, *, crossed: bool, prefixed: bool) -> Scores:
    if crossed:
        return replace(scores, mask=Full())
    return replace(scores, mask=scores.mask | Prefix()) if prefixed else scores


def _expanded(key: Tensor, value: Tensor, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """Grouped heads repeated, which on CPU is faster than `enable_gqa`."""
    groups = heads // key.shape[dim]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim), value.repeat_interleave(groups, dim)


def _documents(cu_seqlens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[N] document of each token and [N] its place there."""
    place = torch.arange(count, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:].to(place.dtype), place, right=True)
    return document, place - cu_seqlens[document].to(place.dtype)
