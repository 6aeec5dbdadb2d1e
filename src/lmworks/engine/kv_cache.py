"""The cache of keys and values: one tensor, cut into blocks. Knows no sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.engine.config import EngineConfig
from lmworks.models.config import ModelConfig


class KVCache:
    """Blocks of every layer.

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
        attention = model.decoder.attention
        shape = (model.decoder.num_hidden_layers, 2, attention.num_key_value_heads, num_blocks, block_size)
        # Zeros, not empty: hidden places are multiplied by a weight of zero, and 0 · NaN is NaN.
        self.layers: tuple[Tensor, ...] = torch.zeros((*shape, attention.head_dim), dtype=dtype, device=device).unbind()
        """Each [2, K, blocks, block_size, D]: keys, then values."""

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """[2, K, blocks, block_size, D]."""
        return tuple(self.layers[0].shape)

    def clear(self, blocks: list[int]) -> None:
        """Set blocks to zero in all layers."""
        for layer in self.layers:
            layer[:, :, blocks] = 0


def cache_size(model: ModelConfig, config: EngineConfig, dtype: torch.dtype) -> tuple[int, int]:
    """How many blocks there will be, and the longest sequence to accept.

    Returns:
        `(num_blocks, max_model_len)`; one sequence of that length always fits.

    Raises:
        ConfigError: the context asked for is longer than the model's, or than the cache.
    """
    context = model.max_position_embeddings
    wanted = config.max_model_len or context
    if wanted > context:
        raise ConfigError(f"max_model_len {wanted} exceeds the model's context of {context}", "Lower max_model_len")
    attention, size = model.decoder.attention, config.block_size
    block_bytes = 2 * attention.num_key_value_heads * attention.head_dim * size * dtype.itemsize
    block_bytes *= model.decoder.num_hidden_layers
    usable = config.max_num_seqs * -(-wanted // size)
    num_blocks = config.num_kv_blocks or min(config.kv_cache_memory_bytes // block_bytes, usable)
    capacity = num_blocks * size
    if capacity == 0 or (config.max_model_len is not None and capacity < wanted):
        raise ConfigError(
            f"a cache of {num_blocks} blocks holds {capacity} tokens, one sequence may have {wanted}",
            f"Give kv_cache_memory_bytes of at least {-(-wanted // size) * block_bytes}, or lower max_model_len",
        )
    return num_blocks, min(wanted, capacity)
