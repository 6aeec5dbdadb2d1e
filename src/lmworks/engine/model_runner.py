"""From scheduled chunks to logits: lays the tokens out flat and runs the one model once. Knows no sampling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from lmworks.engine.kv_cache import KVCache
from lmworks.engine.paged_context import PagedContext
from lmworks.engine.scheduler import Chunk
from lmworks.kernels.paged_attention import PagedAttentionMethod
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext

PARALLEL_TOKENS = 64
"""Steps of this many tokens take all of torch's threads."""


class ModelRunner:
    """Runs the model over the paged cache.

    Args:
        model: any decoder, with an encoder or without, in evaluation mode when `run` is called.
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
        self.decode_threads = decode_threads or max(1, (os.cpu_count() or 2) // 2)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks' keys and values.

        Returns:
            [R, V] float32 logits after the last `num_logits` tokens of each chunk, in the order of the chunks.
        """
        tokens: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for chunk in chunks:
            tokens += chunk.token_ids
            positions += range(chunk.start, chunk.start + chunk.length)
            wanted += range(len(tokens) - chunk.num_logits, len(tokens))
        model, device = self.model, self.model.device
        sources = [chunk.sequence.source_token_ids for chunk in chunks if chunk.encodes]
        work = len(tokens) + sum(map(len, sources))
        with at_most_threads(self.decode_threads if work < PARALLEL_TOKENS else torch.get_num_threads()):
            hidden = model(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                PagedContext(self.cache, chunks, self.method, device),
                memory=encode(model, sources) if sources else None,
            )
            if len(wanted) < len(tokens):
                hidden = hidden[torch.tensor(wanted, dtype=torch.int64, device=device)]
            return model.logits(hidden).float()


def encode(model: Transformer, sources: Sequence[Sequence[int]]) -> Tensor:
    """The encoder's output [M, E] for sources packed end to end."""
    lengths = [len(source) for source in sources]
    ids = torch.tensor([i for source in sources for i in source], device=model.device)
    positions = torch.cat([torch.arange(n, device=model.device) for n in lengths])
    return model.encode(ids, positions, PackedContext(source_bounds(lengths, model.device)))


def source_bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[D+1] int32, where each of the packed sources begins and ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


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
