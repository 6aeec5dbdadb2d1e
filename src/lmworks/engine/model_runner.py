"""From scheduled chunks to logits: lays the tokens out flat and runs the one model once. Knows no sampling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lmworks.engine.kv_cache import KVCache
from lmworks.engine.paged_context import PagedContext
from lmworks.engine.scheduler import Chunk
from lmworks.kernels.paged_attention import PagedAttention, PagedAttentionMethod, PagedSequence
from lmworks.models.transformer import Transformer

PARALLEL_TOKENS = 64
"""Steps of this many tokens take all of torch's threads."""


class ModelRunner:
    """Runs the model over the paged cache.

    Args:
        model: any decoder, in evaluation mode when `run` is called.
        cache: its keys and values.
        method: of attention.
        decode_threads: for steps of few tokens on a CPU; None takes half the cores. Such a step is hundreds of
            operations of microseconds: more threads wait for each other longer than they work.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        method: PagedAttentionMethod = "batched",
        decode_threads: int | None = None,
    ) -> None:
        self.model, self.cache, self.method = model, cache, method
        self.num_heads = model.config.decoder.attention.num_attention_heads
        self.decode_threads = decode_threads or max(1, (os.cpu_count() or 2) // 2)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks' keys and values.

        Returns:
            [R, V] float32 logits after the last token of each chunk that reaches its sequence's end.
        """
        tokens: list[int] = []
        positions: list[int] = []
        placed: list[PagedSequence] = []
        ends: list[int] = []
        for chunk in chunks:
            sequence, start = chunk.sequence, chunk.sequence.num_computed_tokens
            stop = start + chunk.length
            tokens += sequence.token_ids[start:stop]
            positions += range(start, stop)
            placed.append(PagedSequence(sequence.block_table, start, chunk.length))
            if chunk.reaches_end:
                ends.append(len(tokens) - 1)
        model, device = self.model, self.model.device
        attention = PagedAttention(
            placed, self.cache.layer_shape, self.num_heads, self.cache.layers[0].dtype, device, self.method
        )
        with at_most_threads(self.decode_threads if len(tokens) < PARALLEL_TOKENS else torch.get_num_threads()):
            hidden = model(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                PagedContext(self.cache, attention),
            )
            if len(ends) < len(tokens):
                hidden = hidden[torch.tensor(ends, dtype=torch.int64, device=device)]
            return model.logits(hidden).float()


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Let torch use no more than `count` threads on the CPU."""
    before = torch.get_num_threads()
    if count >= before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
