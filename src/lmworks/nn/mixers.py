"""Attention cheaper than quadratic, as mixers that need whole documents: block-sparse, LSH, linear, Linformer.

Each is ordinary projections around a function of packed queries, keys and values. None can be served from a paged
cache, which shows a token at a time; the engine refuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from lmworks.kernels.block_sparse_attention import bigbird_layout, block_sparse_attention, longformer_layout
from lmworks.kernels.linear_attention import (
    elu_features,
    favor_features,
    linear_attention,
    linformer_attention,
    orthogonal_projection,
    relu_features,
)
from lmworks.kernels.lsh_attention import lsh_attention
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.positions import PositionSignal

Mix = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From query, key, value [N, H, D] and cu_seqlens [documents+1] to [N, H, D]."""


class MixedAttention(nn.Module):
    """Projects, turns queries and keys, mixes, projects back.

    Args:
        hidden_size: E.
        num_heads: H, of queries, keys and values alike.
        head_dim: D.
        mix: what is done with them; a module where it has weights of its own.
        shared_query_key: queries are keys too (Reformer).
    """

    def __init__(
        self, hidden_size: int, num_heads: int, head_dim: int, mix: Mix, *, shared_query_key: bool = False
    ) -> None:
        super().__init__()
        self.head_dim, self.mix = head_dim, mix
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = None if shared_query_key else nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self, x: Tensor, signal: PositionSignal, context: AttentionContext, memory: Tensor | None = None
    ) -> Tensor:
        """[N, E] -> [N, E]."""
        query = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        key = query if self.k_proj is None else self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if signal.rotation is not None:
            query, key = signal.rotation(query), signal.rotation(key)
        return self.o_proj(self.mix(query, key, value, context.cu_seqlens).flatten(-2))


def longformer(*, window: int, num_global_tokens: int, block_size: int, causal: bool) -> Mix:
    """`window` tokens on either side, and the first tokens of a document, which see all and are seen by all."""

    def mix(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
        is_global = torch.arange(len(query), device=query.device) - starts < num_global_tokens
        layout = longformer_layout(cu_seqlens, window=window, is_global=is_global, causal=causal, block_size=block_size)
        return block_sparse_attention(query, key, value, layout, scale=query.shape[-1] ** -0.5)

    return mix


def bigbird(*, block_size: int, num_random_blocks: int, seed: int, causal: bool) -> Mix:
    """Neighboring blocks, the first and last, and random ones; a causal model has no last."""

    def mix(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        layout = bigbird_layout(
            cu_seqlens, block_size=block_size, num_random_blocks=num_random_blocks,
            global_blocks=(0,) if causal else (0, -1), causal=causal, seed=seed,
        )  # fmt: skip
        return block_sparse_attention(query, key, value, layout, scale=query.shape[-1] ** -0.5)

    return mix


def lsh(*, num_buckets: int, num_hashes: int, chunk_length: int, seed: int, causal: bool) -> Mix:
    """Tokens of one hash bucket."""

    def mix(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        return lsh_attention(
            query, value, cu_seqlens, num_buckets=num_buckets, num_hashes=num_hashes, chunk_length=chunk_length,
            scale=query.shape[-1] ** -0.5, causal=causal, seed=seed,
        )  # fmt: skip

    return mix


def linear(feature_map: str, *, num_features: int, seed: int, causal: bool) -> Mix:
    """A feature map of queries and keys, or FAVOR+'s random features."""

    def mix(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        if feature_map == "favor":
            projection = _projection(num_features, query.shape[-1], seed).to(query.device)
            scale = query.shape[-1] ** -0.5
            query, key = (favor_features(t, projection, scale=scale, is_query=t is query) for t in (query, key))
        else:
            features = {"elu": elu_features, "relu": relu_features}[feature_map]
            query, key = features(query), features(key)
        return linear_attention(query, key, value, cu_seqlens, causal=causal)

    return mix


@lru_cache(maxsize=8)  # all layers of a model draw the same directions
def _projection(num_features: int, head_dim: int, seed: int) -> Tensor:
    return orthogonal_projection(num_features, head_dim, seed=seed)


class Linformer(nn.Module):
    """A fixed number of learned mixtures of a document's keys and values."""

    def __init__(self, projected_length: int, max_length: int) -> None:
        super().__init__()
        self.key_projection = nn.Parameter(torch.empty(projected_length, max_length))
        self.value_projection = nn.Parameter(torch.empty(projected_length, max_length))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        """See `Mix`."""
        return linformer_attention(
            query, key, value, cu_seqlens, self.key_projection, self.value_projection, scale=query.shape[-1] ** -0.5
        )
