"""From scheduled chunks to logits: lays the tokens out flat and runs the one model once. Knows no sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmworks.engine.kv_cache import KVCache
from lmworks.engine.paged_context import PagedContext
from lmworks.engine.scheduler import Chunk
from lmworks.kernels.paged_attention import PagedAttention, PagedAttentionMethod, PagedSequence
from lmworks.models.transformer import Transformer


class ModelRunner:
    """Runs the model over the paged cache.

    Args:
        model: any decoder, in evaluation mode when `run` is called.
        cache: its keys and values.
        method: of attention.
    """

    def __init__(self, model: Transformer, cache: KVCache, method: PagedAttentionMethod = "batched") -> None:
        self.model, self.cache, self.method = model, cache, method
        self.num_heads = model.config.decoder.attention.num_attention_heads

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
        hidden = model(
            torch.tensor(tokens, device=device),
            torch.tensor(positions, device=device),
            PagedContext(self.cache, attention),
        )
        if len(ends) < len(tokens):
            hidden = hidden[torch.tensor(ends, dtype=torch.int64, device=device)]
        return model.logits(hidden).float()
