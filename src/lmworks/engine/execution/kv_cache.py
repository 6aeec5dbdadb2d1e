"""The cache of keys and values: a tensor a layer, cut into blocks. Knows no sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.engine.config import EngineConfig
from lmworks.engine.scheduling.block_manager import Copy
from lmworks.engine.servable import context_length, served_decoder
from lmworks.kernels.native.memory import zero_memory
from lmworks.kernels.paged_step import SCALE_BYTES
from lmworks.models.cache_layout import cache_entries
from lmworks.models.config import ModelConfig
from lmworks.models.position_slots import LearnedPositions
from lmworks.models.transformer import Transformer

DEFAULT_MEMORY = 512 * 2**20
"""Bytes of a cache on a CPU."""


class KVCache:
    """Blocks of every layer. A source's keys and values, which cross-attention reads, take blocks like a sequence's.

    On a GPU there is a block more, which belongs to nobody: rows that fill a recorded step up write there.

    Args:
        model: whose layers and heads.
        num_blocks: blocks per layer.
        block_size: tokens per block.
        dtype: of keys and values.
        device: where.
    """

    def __init__(
        self, model: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spare_block = num_blocks
        held = num_blocks + 1 if device.type == "cuda" else num_blocks
        # Zeros, not empty: hidden places are multiplied by a weight of zero, and 0 · NaN is NaN.
        self.layers: tuple[Tensor, ...] = tuple(
            _zeros((entry.planes, entry.kv_heads, held, block_size, entry.width + scale_bytes(dtype)), dtype, device)
            for entry in cache_entries(served_decoder(model))
        )
        """Each [P, K, blocks, block_size, D]: keys, then values; latent attention has one plane. Vectors of int8 have
        their scale behind them."""

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy blocks in all layers; every source is read before any target is written."""
        sources, targets = ([*column] for column in zip(*copies, strict=True))
        for layer in self.layers:
            layer[:, :, targets] = layer[:, :, sources]

    def clear(self, blocks: list[int]) -> None:
        """Set blocks to zero in all layers."""
        for layer in self.layers:
            layer[:, :, blocks] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on a CPU take memory only as blocks are first written to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return zero_memory(torch.Size(shape).numel() * dtype.itemsize).view(dtype).view(shape)


def scale_bytes(dtype: torch.dtype) -> int:
    """Behind every vector of a cache of that type."""
    return SCALE_BYTES if dtype == torch.int8 else 0


def cache_dtype(model: Transformer, config: EngineConfig) -> torch.dtype:
    """Of a model's keys and values.

    Raises:
        ConfigError: the configuration asks for a type that the model's attention cannot read.
    """
    if config.kv_cache_dtype == "auto":
        return model.dtype
    latent = any(entry.planes == 1 for entry in cache_entries(served_decoder(model.config)))
    where = "on a GPU" if model.device.type != "cpu" else "of latent attention" if latent else None
    if where is not None:
        raise ConfigError(
            f"kv_cache_dtype {config.kv_cache_dtype!r} cannot be had: a cache {where} has the model's type",
            "Leave kv_cache_dtype at auto",
        )
    chosen: torch.dtype = getattr(torch, config.kv_cache_dtype)
    return chosen


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds."""

    num_blocks: int
    max_model_len: int
    """Longest sequence to accept: prompt plus completion, or all that a decoder behind an encoder says."""
    max_source_len: int = 0
    """Longest source to accept; 0 without an encoder."""


def cache_size(
    model: ModelConfig, config: EngineConfig, dtype: torch.dtype, memory_bytes: int = DEFAULT_MEMORY
) -> CacheSize:
    """How many blocks there will be, and what to accept; one sequence of the greatest lengths always fits.

    Args:
        model: to be served.
        config: limits.
        dtype: of the cache.
        memory_bytes: for the cache where the configuration says nothing.

    Raises:
        ConfigError: the model cannot be served, or the context asked for is longer than the model's or the cache.
    """
    decoder = served_decoder(model)
    context, size = context_length(model), config.block_size
    wanted = config.max_model_len or context
    if wanted > context:
        raise ConfigError(f"max_model_len {wanted} exceeds the model's context of {context}", "Lower max_model_len")
    vectors = [(entry.planes * entry.kv_heads, entry.width) for entry in cache_entries(decoder)]
    block_bytes = sum(n * (width * dtype.itemsize + scale_bytes(dtype)) for n, width in vectors) * size
    source_blocks = 0 if model.encoder is None else -(-context // size)
    sequence_blocks = -(-wanted // size) + source_blocks
    usable = config.max_num_seqs * sequence_blocks
    num_blocks = config.num_kv_blocks or min((config.kv_cache_memory_bytes or memory_bytes) // block_bytes, usable)
    capacity = (num_blocks - min(source_blocks, num_blocks // 2)) * size
    if capacity == 0 or (source_blocks and num_blocks < 2) or (config.max_model_len and capacity < wanted):
        raise ConfigError(
            f"a cache of {num_blocks} blocks holds {capacity} tokens, one sequence may have {wanted}",
            f"Give kv_cache_memory_bytes of at least {sequence_blocks * block_bytes}, or lower max_model_len",
        )
    longest = min(wanted, capacity)
    if model.encoder is None:
        return CacheSize(num_blocks, longest)
    room = (num_blocks - -(-longest // size)) * size
    bounded = isinstance(model.positions, LearnedPositions)
    return CacheSize(num_blocks, longest, min(room, context) if bounded else room)
