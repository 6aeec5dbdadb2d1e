"""What attention leaves behind for later tokens: the shape of one token's entry in a layer's cache.

The engine allocates by it and accounting counts by it, so the two cannot differ. Pure values; knows no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmworks.core.errors import ConfigError
from lmworks.models.config import StackConfig
from lmworks.models.slots import Attention, AttentionConfig, MLAConfig


@dataclass(frozen=True)
class CacheEntry:
    """One token in one layer: `planes` times `kv_heads` vectors of `width` numbers."""

    planes: int
    """2 for keys and values, 1 where values are the beginning of keys."""
    kv_heads: int
    width: int

    @property
    def numbers(self) -> int:
        """Numbers to store."""
        return self.planes * self.kv_heads * self.width


def cache_entry(attention: Attention) -> CacheEntry:
    """What one token takes in the cache of a layer.

    Latent attention keeps its latent and the part of the key that turns, one "head" for all
    (DeepSeek-V2, arXiv:2405.04434).

    Raises:
        ConfigError: such attention has no cache of tokens.
    """
    match attention:
        case AttentionConfig():
            return CacheEntry(2, attention.num_key_value_heads, attention.head_dim)
        case MLAConfig():
            return CacheEntry(1, 1, attention.kv_lora_rank + attention.qk_rope_head_dim)
    raise ConfigError(
        f"{attention.kind} attention cannot be served from a paged cache",
        "Generate with softmax or latent attention; use this model for training and scoring whole documents",
    )


def cache_entries(stack: StackConfig) -> tuple[CacheEntry, ...]:
    """What one token takes in each layer of a stack, in order.

    Raises:
        ConfigError: see `cache_entry`.
    """
    layers = (stack.layer(index).attention for index in range(stack.num_hidden_layers))
    return tuple(cache_entry(attention) for attention in layers if attention is not None)
