"""How a served model's attention reaches keys and values: it writes the new ones to the cache and attends there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.scheduling.scheduler import Chunk
from lmworks.kernels.masks import Full
from lmworks.kernels.paged_attention import PagedAttention, PagedAttentionMethod, PagedWrite
from lmworks.kernels.paged_step import PagedSequence, PagedStep
from lmworks.kernels.scores import Scores


class PagedContext:
    """The `AttentionContext` of one engine step.

    Args:
        cache: holds keys and values of all sequences.
        chunks: the step's tokens, in packed order.
        method: of attention.
        device: of the cache.
    """

    latent = True

    def __init__(
        self, cache: KVCache, chunks: Sequence[Chunk], method: PagedAttentionMethod, device: torch.device
    ) -> None:
        self._cache, self._chunks, self._device = cache, chunks, device
        own, sources, new_sources = [], [], []
        for chunk in chunks:
            s = chunk.sequence
            start, source_length = s.num_computed_tokens, len(s.source_token_ids)
            own.append(PagedSequence(s.block_table, start, chunk.length))
            sources.append(PagedSequence(s.source_table, start, chunk.length, source_length))
            if chunk.encodes:
                new_sources.append(PagedSequence(s.source_table, 0, source_length))
        step = PagedStep(own)
        self._attend, self._write = PagedAttention(step, method), PagedWrite(step, device, method)
        self._attend_source = PagedAttention(sources, method)
        self._write_source = PagedWrite(new_sources, device, method)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """See `nn.attention_context.AttentionContext.cu_seqlens`."""
        bounds = [0, *accumulate(chunk.length for chunk in self._chunks)]
        return torch.tensor(bounds, dtype=torch.int32, device=self._device)

    def lengths(self) -> Tensor:
        """See `nn.attention_context.AttentionContext.lengths`.

        A prompt's length is known from its first token on, so chunks do not change its keys; generated tokens
        are known one by one, until the sequence is computed anew.
        """
        return torch.tensor(
            [
                max(chunk.sequence.num_known_tokens, position + 1)
                for chunk in self._chunks
                for position in range(chunk.start, chunk.start + chunk.length)
            ],
            device=self._device,
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `nn.attention_context.AttentionContext.attend`."""
        blocks = self._cache.layers[layer]
        self._write(blocks, key, value)
        return self._attend(query, blocks, scores, value.shape[-1])

    def cross_attend(
        self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """See `nn.attention_context.AttentionContext.cross_attend`."""
        blocks = self._cache.layers[layer]
        if key is not None:
            assert value is not None, "keys come with values"
            self._write_source(blocks, key, value)
        return self._attend_source(query, blocks, replace(scores, mask=Full()))
