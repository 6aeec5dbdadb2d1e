"""Attention of a step that is recorded once and replayed: where its tokens stand is read from tensors, not from lists.

All sequences of such a step have equally many new tokens: one while decoding, more where guesses are verified. Knows
no request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmworks.kernels.native_attention import native_rule
from lmworks.kernels.scores import Scores


class NotRecordableError(Exception):
    """The model does something that reads lists; the text says what."""


class RecordedContext:
    """The `AttentionContext` of such a step.

    Args:
        layers: the cache, see `KVCache.layers`; native operations can read it.
        block_tables: [S, W] int32, contiguous.
        starts: [S] int32 positions of each sequence's first new token.
        length: new tokens of each sequence.
    """

    latent = True

    def __init__(self, layers: Sequence[Tensor], block_tables: Tensor, starts: Tensor, length: int) -> None:
        self._layers, self._tables, self._starts, self._length = layers, block_tables, starts, length
        count, device = len(starts), starts.device
        self.cu_seqlens = torch.arange(0, count * length + 1, length, dtype=torch.int32, device=device)
        """See `nn.attention_context.AttentionContext.cu_seqlens`."""
        columns = starts, torch.full_like(starts, length), self.cu_seqlens[:-1], torch.zeros_like(starts)
        self._shares = torch.stack(columns, 1)

    def lengths(self) -> Tensor:
        """No model whose positions ask for lengths is recorded."""
        raise NotRecordableError("positions depend on lengths")

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `nn.attention_context.AttentionContext.attend`."""
        cache, rule = self._layers[layer], native_rule(scores)
        if isinstance(rule, str):
            raise NotRecordableError(rule)
        torch.ops.lmworks.write_cache(cache, key, value, self._tables, self._shares)
        result: Tensor = torch.ops.lmworks.paged_attention(
            query, cache, self._tables, self._shares, rule.scale, rule.softcap, rule.window, rule.sinks, rule.slopes
        )
        return result

    def cross_attend(
        self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """No model with an encoder is recorded."""
        raise NotRecordableError("sources differ in length")
