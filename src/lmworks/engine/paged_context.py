"""How a served model's attention reaches keys and values: it writes the new ones to the cache and attends there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lmworks.engine.kv_cache import KVCache
from lmworks.kernels.paged_attention import PagedAttention, write_kv
from lmworks.kernels.scores import Scores


@dataclass(frozen=True)
class PagedContext:
    """The `AttentionContext` of one engine step."""

    cache: KVCache
    attention: PagedAttention
    """Planned for the step's sequences."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `nn.attention_context.AttentionContext.attend`."""
        blocks = self.cache.layers[layer]
        write_kv(blocks, self.attention.rows, key, value)
        return self.attention(query, blocks, scale=scores.scale)
