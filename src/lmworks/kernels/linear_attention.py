"""Attention in time linear in length: kernel feature maps, Performer's random features, Linformer's projections.

With scores φ(q)·φ(k), all that a query needs of the past is one sum over keys, which parallel training computes
by chunks and decoding carries as a state of fixed size. Knows no module: projections are arguments.

Legend: `N` packed tokens, `H` heads, `K` kv heads, `D` head dim, `M` features, `S` chunk length, `C` chunks,
`G` = H/K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels.block_sparse_attention import document_blocks


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive everywhere (Katharopoulos et al. 2020, arXiv:2006.16236)."""
    return F.elu(x) + 1


def relu_features(x: Tensor) -> Tensor:
    """max(x, 0); a query without a common feature with any key gets 0."""
    return F.relu(x)


def orthogonal_projection(num_features: int, head_dim: int, *, seed: int = 0) -> Tensor:
    """Random directions for `favor_features`: Gaussian lengths, orthogonal within each `head_dim` of them.

    Returns:
        [M, D] float32, the same for the same seed.

    Raises:
        ConfigError: no feature.
    """
    if num_features < 1:
        raise ConfigError(f"num_features={num_features} approximates nothing", "Give at least 1; head_dim is usual")
    generator = torch.Generator().manual_seed(seed)
    squares = -(-num_features // head_dim)
    q, r = torch.linalg.qr(torch.randn(squares, head_dim, head_dim, generator=generator))
    # Without the signs of r, directions are not uniform and the estimate is biased, whatever the number of features.
    directions = (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]).flatten(0, 1)
    lengths = torch.randn(num_features, head_dim, generator=generator).norm(dim=-1, keepdim=True)
    return directions[:num_features] * lengths


def favor_features(x: Tensor, projection: Tensor, *, scale: float, is_query: bool) -> Tensor:
    """Performer's positive random features: φ(q)·φ(k) estimates exp(scale · q·k) (FAVOR+, arXiv:2009.14794).

    Queries are divided by their largest feature, which leaves the attention as it is. Keys are not: a maximum over
    keys would look at the future, and exp(w·x − ‖x‖²/2) cannot exceed exp(‖w‖²/2), far inside float32; below,
    keys with scale · ‖k‖² beyond about 100 vanish.

    Args:
        x: [..., D] queries or keys.
        projection: [M, D] from `orthogonal_projection`, the same for queries and keys.
        scale: of the scores that are estimated.
        is_query: whether `x` are queries.

    Returns:
        [..., M], at least float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)) * math.sqrt(scale)
    exponent = x @ projection.to(x).T
    if is_query:
        exponent = exponent - exponent.detach().amax(-1, keepdim=True)
    else:
        exponent = exponent - x.square().sum(-1, keepdim=True) / 2
    return exponent.exp() / math.sqrt(len(projection))


def linear_attention_step(query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of causal linear attention; leading dimensions are free, as for sequences decoded together.

    Args:
        query: [..., H, M] features.
        key: [..., K, M] features.
        value: [..., K, D].
        state: [..., K, M, D+1], zeros at first: the sums of φ(k) v and, in the last column, of φ(k).

    Returns:
        [..., H, D] and the new state, at least float32.
    """
    state = state + key[..., None] * _with_ones(value, state.dtype)[..., None, :]
    out = _by_kv_head(query.to(state.dtype), key.shape[-2]) @ state
    return _normalized(out).flatten(-3, -2).to(value.dtype), state


def linear_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, causal: bool = True
) -> Tensor:
    """Token by token over a state, which a bidirectional query reads after the last; as `linear_attention`."""
    outputs = []
    lengths = cu_seqlens.diff().tolist()
    for q, k, v in zip(*(torch.split(t, lengths) for t in (query, key, value)), strict=True):
        state = torch.zeros(1, dtype=torch.promote_types(v.dtype, torch.float32), device=v.device)
        steps = []
        for token in range(len(q)):
            out, state = linear_attention_step(q[token], k[token], v[token], state)
            steps.append(out)
        if not causal:
            steps = [linear_attention_step(row, k[0] * 0, v[0], state)[0] for row in q]
        outputs += steps
    return torch.stack(outputs)


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, *, causal: bool = True, chunk_size: int = 128
) -> Tensor:
    """Σ φ(q)·φ(k) v / Σ φ(q)·φ(k) inside each document, in time linear in its length.

    The causal form computes scores inside a chunk and reads all earlier chunks through their summed state.

    Args:
        query: [N, H, M] features, not negative.
        key: [N, K, M] features, not negative.
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
        causal: a token sees only itself and the past.
        chunk_size: tokens per chunk; affects speed and memory alone.

    Returns:
        [N, H, D], in the type of `value`; sums are at least float32.
    """
    blocks = document_blocks(cu_seqlens, chunk_size)
    wide = torch.promote_types(value.dtype, torch.float32)
    q = _by_kv_head(blocks.cut(query.to(wide)), key.shape[1]).permute(0, 2, 3, 1, 4)  # [C, K, G, S, M]
    k = blocks.cut(key.to(wide)).masked_fill(~blocks.real[..., None, None], 0).transpose(1, 2)  # [C, K, S, M]
    v = _with_ones(blocks.cut(value), wide).transpose(1, 2)  # [C, K, S, D+1]
    sums = k.mT @ v  # [C, K, M, D+1]
    by_document = torch.split(sums, blocks.counts.tolist())
    if causal:
        before = [F.pad(s.cumsum(0)[:-1], (0, 0) * 3 + (1, 0)) for s in by_document if len(s)]
        within = (q @ k[:, :, None].mT).tril()
        out = within @ v[:, :, None] + q @ torch.cat(before)[:, :, None]
    else:
        out = q @ torch.cat([s.sum(0, keepdim=True).expand_as(s) for s in by_document])[:, :, None]
    return blocks.join(_normalized(out).permute(0, 3, 1, 2, 4).flatten(2, 3)).to(value.dtype)


def linear_attention_state(key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The state after each document, [documents, K, M, D+1], for `linear_attention_step` to go on from.

    Args:
        key: [N, K, M] features.
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
    """
    lengths = cu_seqlens.diff().tolist()
    v = _with_ones(value, torch.promote_types(value.dtype, torch.float32))
    pairs = zip(torch.split(key.to(v.dtype), lengths), torch.split(v, lengths), strict=True)
    return torch.stack([torch.einsum("nkm,nkd->kmd", *pair) for pair in pairs])


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    key_projection: Tensor,
    value_projection: Tensor,
    *,
    scale: float,
) -> Tensor:
    """Attention to `k` learned mixtures of the keys and values of a document (arXiv:2006.04768).

    Each mixture contains the future, so there is no causal form. A document shorter than the projections meets
    their first columns.

    Args:
        query: [N, H, D].
        key: [N, K, D].
        value: [N, K, D].
        cu_seqlens: [documents+1] int32, from 0 to N.
        key_projection: [k, max_len].
        value_projection: [k, max_len]; may be the same tensor.
        scale: multiplies the scores.

    Returns:
        [N, H, D].

    Raises:
        ConfigError: a document longer than `max_len`.
    """
    lengths, max_len = cu_seqlens.diff().tolist(), key_projection.shape[1]
    if max(lengths) > max_len:
        raise ConfigError(
            f"a document of {max(lengths)} tokens exceeds the {max_len} positions that Linformer's projections cover",
            "Cut the document or build the model with a longer maximum length",
        )
    outputs = []
    for q, k, v in zip(*(torch.split(t, lengths) for t in (query, key, value)), strict=True):
        mixed_k = torch.einsum("ln,nkd->kld", key_projection[:, : len(k)], k)
        mixed_v = torch.einsum("ln,nkd->kld", value_projection[:, : len(v)], v)
        rows = _by_kv_head(q, k.shape[1]).permute(1, 2, 0, 3)  # [K, G, T, D]
        weights = (rows @ mixed_k.mT[:, None] * scale).softmax(-1)
        outputs.append((weights @ mixed_v[:, None]).permute(2, 0, 1, 3).flatten(1, 2))
    return torch.cat(outputs)


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[..., H, D] -> [..., K, G, D]."""
    return x.reshape(*x.shape[:-2], kv_heads, x.shape[-2] // kv_heads, x.shape[-1])


def _with_ones(value: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., D] -> [..., D+1]: the last column sums up to the normalizer."""
    return F.pad(value.to(dtype), (0, 1), value=1.0)


def _normalized(out: Tensor) -> Tensor:
    """[..., D+1] -> [..., D]: divided by the last column, 0 where that is 0."""
    total = out[..., -1:]
    return out[..., :-1] / total.masked_fill(total == 0, 1)
