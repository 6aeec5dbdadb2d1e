"""Reformer's attention: tokens meet only those whose hash falls into the same bucket (arXiv:2001.04451).

Queries are their own keys (scaled to unit length), so that a token and what it looks for hash alike. Random
rotations give the buckets; tokens sorted by bucket are cut into chunks, and each chunk looks at itself and the
one before. Several rounds of hashing are merged by their log-sum-exp, a pair met in several rounds counting once.
Nothing wraps around: the first chunk of a document has none before it. Knows no module.

Legend: `N` packed tokens, `H` heads, `K` value heads, `D` head dim, `R` hash rounds, `S` chunk length, `C` chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels.block_sparse_attention import DocumentBlocks, document_blocks, take

SELF_PENALTY = -1e5
"""Score of a token with itself: nothing beside any other token, all where there is no other (appendix of the paper)."""


def lsh_buckets(query_key: Tensor, num_buckets: int | tuple[int, ...], num_hashes: int, seed: int) -> Tensor:
    """Hash each vector by which of ±(random directions) it is nearest to.

    Args:
        query_key: [N, H, D].
        num_buckets: even, or 1. A tuple hashes by parts, (b₁, b₂) giving b₁·b₂ buckets at the price of b₁ + b₂
            directions: with the number of buckets growing with length, a plain number makes hashing quadratic.
        num_hashes: rounds, each with rotations of its own.
        seed: of the rotations, which are the same on every device.

    Returns:
        [R, N, H] int64.

    Raises:
        ConfigError: an odd number of buckets, or no round.
    """
    parts = (num_buckets,) if isinstance(num_buckets, int) else tuple(num_buckets)
    if any(part != 1 and (part < 2 or part % 2) for part in parts):
        raise ConfigError(
            f"num_buckets={num_buckets} cannot be hashed to: directions come in opposite pairs",
            "Give an even number, 1, or a tuple of those",
        )
    if num_hashes < 1:
        raise ConfigError(f"num_hashes={num_hashes} leaves no bucket to attend in", "Give at least 1 round")
    generator = torch.Generator().manual_seed(seed)
    vectors = query_key.detach().float()
    bucket = torch.zeros(num_hashes, *query_key.shape[:2], dtype=torch.int64, device=query_key.device)
    for part in parts:
        shape = (num_hashes, query_key.shape[1], query_key.shape[2], max(part // 2, 1))
        rotation = torch.randn(shape, generator=generator).to(vectors.device)
        turned = torch.einsum("nhd,rhdb->rnhb", vectors, rotation)
        bucket = bucket * part + torch.cat((turned, -turned), -1)[..., :part].argmax(-1)
    return bucket


def lsh_attention_reference(
    query_key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    num_buckets: int | tuple[int, ...],
    num_hashes: int,
    chunk_length: int,
    scale: float,
    causal: bool = True,
    seed: int = 0,
) -> Tensor:
    """Dense attention masked to the pairs that some round brings together; the oracle. As `lsh_attention`."""
    bucket = lsh_buckets(query_key, num_buckets, num_hashes, seed).transpose(1, 2)  # [R, H, N]
    place = torch.arange(len(query_key), device=query_key.device)
    document = torch.searchsorted(cu_seqlens[1:].to(place.dtype), place, right=True)
    together = document[:, None] == document
    mine, other = bucket[..., :, None], bucket[..., None, :]
    before = together & ((other < mine) | ((other == mine) & (place < place[:, None])))
    chunk = before.sum(-1) // chunk_length  # a token's rank in its document sorted by bucket
    apart = chunk[..., :, None] - chunk[..., None, :]
    allowed = (together & (mine == other) & (apart >= 0) & (apart <= 1)).any(0)
    if causal:
        allowed &= place <= place[:, None]
    alone = torch.eye(len(place), dtype=torch.bool, device=place.device)
    allowed = torch.where((allowed & ~alone).any(-1, keepdim=True), allowed & ~alone, alone)
    value = value.repeat_interleave(query_key.shape[1] // value.shape[1], dim=1)
    scores = torch.einsum("nhd,mhd->hnm", query_key, F.normalize(query_key, dim=-1)) * scale
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~allowed, float("-inf")).softmax(-1), value)


def lsh_attention(
    query_key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    num_buckets: int | tuple[int, ...],
    num_hashes: int,
    chunk_length: int,
    scale: float,
    causal: bool = True,
    seed: int = 0,
) -> Tensor:
    """Attention of each token to its bucket, as far as that lies in its chunk of the sorted tokens or the one before.

    A token sees itself only where it sees nothing else. Hashing is part of the forward pass and passes no gradient.

    Args:
        query_key: [N, H, D] queries, whose directions are the keys.
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
        num_buckets: see `lsh_buckets`; about 2 T / `chunk_length` for documents of T tokens.
        num_hashes: rounds; more find more of the large weights.
        chunk_length: tokens per chunk; time and memory grow with it.
        scale: multiplies the scores.
        causal: a token sees only itself and the past.
        seed: of the rotations.

    Returns:
        [N, H, D].

    Raises:
        ConfigError: an odd number of buckets, no round, or an empty chunk.
    """
    heads = query_key.shape[1]
    wide = torch.promote_types(query_key.dtype, torch.float32)
    blocks = document_blocks(cu_seqlens, chunk_length)
    bucket = lsh_buckets(query_key, num_buckets, num_hashes, seed)
    document = blocks.join(blocks.document[:, None].expand_as(blocks.tokens))
    order = (document[:, None] * (bucket.max() + 1) + bucket).argsort(dim=1, stable=True)
    place = blocks.places[order.argsort(dim=1)]  # [R, N, H]; documents sort into slots of their own
    # Bucket and chunk in one number: a token meets those of the same number and of the one before.
    cell = (bucket * (len(blocks.tokens) + 2) + place // chunk_length).flatten(1)

    query = query_key.to(wide).flatten(0, 1)
    key = F.normalize(query, dim=-1)
    value = value.to(wide).repeat_interleave(heads // value.shape[1], dim=1).flatten(0, 1)
    head = torch.arange(heads, device=query.device)
    outputs, sums = [], []
    for this in range(num_hashes):
        row = (blocks.cut(order[this]) * heads + head).transpose(1, 2)  # [C, H, S] the N·H rows that places hold
        k_row, real = _with_chunk_before(row, blocks)
        seen = _meets(cell[this], row, k_row) & real[:, None, None, :]
        if causal:
            seen &= k_row[..., None, :] <= row[..., None]
        scores = take(query, row) @ take(key, k_row).mT * scale  # [C, H, S, 2S]
        if num_hashes > 1:
            rounds = sum(_meets(other, row, k_row).to(torch.uint8) for other in cell)
            scores = scores - torch.as_tensor(rounds).clamp(min=1).to(wide).log()
        scores = scores.masked_fill(row[..., None] == k_row[..., None, :], SELF_PENALTY)
        scores = scores.masked_fill(~seen, float("-inf"))
        back = (place[this] // chunk_length * heads + head) * chunk_length + place[this] % chunk_length
        outputs.append(take((scores.softmax(-1) @ take(value, k_row)).flatten(0, 2), back))
        sums.append(take(scores.logsumexp(-1).flatten(), back))
    weights = torch.stack(sums).softmax(0)[..., None]
    return (torch.stack(outputs) * weights).sum(0).to(query_key.dtype)


def _with_chunk_before(row: Tensor, blocks: DocumentBlocks) -> tuple[Tensor, Tensor]:
    """[C, H, S] -> each chunk behind the one before it [C, H, 2S], and [C, 2S] which of those places count."""
    before = torch.arange(len(row), device=row.device) - 1
    exists = (before >= 0) & (blocks.document[before] == blocks.document)
    before = torch.where(exists, before, before + 1)  # never another document, not even under a mask
    real = torch.cat((blocks.real[before] & exists[:, None], blocks.real), -1)
    return torch.cat((row[before], row), -1), real


def _meets(cell: Tensor, row: Tensor, k_row: Tensor) -> Tensor:
    """[C, H, S, 2S] whether a round with these cells brings each pair together."""
    mine, other = cell[row][..., None], cell[k_row][..., None, :]
    return (mine == other) | (mine == other + 1)
