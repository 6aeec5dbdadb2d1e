"""A column of blocks with what stands before and after it: position vectors, segment vectors, norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from lmworks.models.block import Block
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.permuted_context import PermutedContext


class Stack(nn.Module):
    """Encoder or decoder.

    Args:
        layers: the blocks in order.
        norm: after the last, None for none.
        position_codes: give the signals that blocks apply by index.
        embed_positions: [N] positions -> [N, E], added to the embeddings.
        embed_types: segment vectors, added to the embeddings.
        embed_norm: over that sum.
        embed_projection: of it to the hidden size, where the embeddings are narrower.
        target_embedding: [1, E], what stands for a token that is to be predicted from another order (XLNet).
        repeat: consecutive times that each block is applied (ALBERT).
        dropout: of the embeddings.
        layerdrop: probability of leaving a block out while training.
    """

    target_embedding: nn.Parameter | None

    def __init__(
        self, layers: Sequence[Block], norm: nn.Module | None, *, position_codes: Sequence[nn.Module] = (),
        embed_positions: nn.Module | None = None, embed_types: nn.Embedding | None = None,
        embed_norm: nn.Module | None = None, embed_projection: nn.Module | None = None,
        target_embedding: nn.Parameter | None = None, repeat: int = 1, dropout: float = 0.0, layerdrop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_positions, self.embed_types, self.embed_norm = embed_positions, embed_types, embed_norm
        self.embed_projection = embed_projection
        self.register_parameter("target_embedding", target_embedding)
        self.position_codes = nn.ModuleList(position_codes)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.repeat, self.dropout, self.layerdrop = repeat, dropout, layerdrop

    def forward(
        self, x: Tensor, positions: Tensor, context: AttentionContext, *, memory: Tensor | None = None,
        token_type_ids: Tensor | None = None, depth: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states after the final norm.

        Args:
            x: [N, E] token embeddings.
            positions: [N] place of each token in its document.
            context: how attention reaches keys and values.
            memory: [M, E] output of the encoder that is new in this step.
            token_type_ids: [N] segment of each token, 0 where not given.
            depth: stop after so many layers, before the final norm; None: after it.

        Returns:
            [N, E]; in a permuted context [T, E], of the targets alone.
        """
        if isinstance(context, PermutedContext):
            assert self.target_embedding is not None, "only models with two streams are asked for targets"
            x = torch.cat([x, self.target_embedding.expand(len(context.targets), -1)])
            positions = torch.cat([positions, positions[context.targets]])
            if token_type_ids is not None:
                token_type_ids = torch.cat([token_type_ids, token_type_ids[context.targets]])
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions).to(x.dtype)
        if self.embed_types is not None:
            x = x + self.embed_types(torch.zeros_like(positions) if token_type_ids is None else token_type_ids)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        if self.embed_projection is not None:
            x = self.embed_projection(x)
        signals = [code(positions, context.lengths, x.dtype) for code in self.position_codes]
        if self.embed_types is None and token_type_ids is not None:
            signals = [replace(signal, segments=token_type_ids) for signal in signals]
        for layer in islice((layer for layer in self.layers for _ in range(self.repeat)), depth):
            if self.layerdrop and self.training and torch.rand(()) < self.layerdrop:
                continue
            x = layer(x, signals, context, memory)
        if isinstance(context, PermutedContext):
            x = x[len(context.ranks) :]
        return x if self.norm is None or depth is not None else self.norm(x)
