"""A column of blocks with what stands before and after it: position vectors, segment vectors, norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmworks.models.block import Block
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.positions import NO_SIGNAL


class Stack(nn.Module):
    """Encoder or decoder.

    Args:
        layers: the blocks in order.
        norm: after the last, None for none.
        position_codes: give the signals that blocks apply by index.
        embed_positions: [N] positions -> [N, E], added to the embeddings.
        embed_types: segment vectors, added to the embeddings.
        embed_norm: over that sum.
        dropout: of the embeddings.
        layerdrop: probability of leaving a block out while training.
    """

    def __init__(
        self, layers: Sequence[Block], norm: nn.Module | None, *, position_codes: Sequence[nn.Module] = (),
        embed_positions: nn.Module | None = None, embed_types: nn.Embedding | None = None,
        embed_norm: nn.Module | None = None, dropout: float = 0.0, layerdrop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed_positions, self.embed_types, self.embed_norm = embed_positions, embed_types, embed_norm
        self.position_codes = nn.ModuleList(position_codes)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.dropout, self.layerdrop = dropout, layerdrop

    def forward(
        self, x: Tensor, positions: Tensor, context: AttentionContext, *, memory: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states after the final norm.

        Args:
            x: [N, E] token embeddings.
            positions: [N] place of each token in its document.
            context: how attention reaches keys and values.
            memory: [M, E] output of the encoder that is new in this step.
            token_type_ids: [N] segment of each token, 0 where not given.

        Returns:
            [N, E].
        """
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions).to(x.dtype)
        if self.embed_types is not None:
            x = x + self.embed_types(torch.zeros_like(positions) if token_type_ids is None else token_type_ids)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        signals = [code.signal(positions, context.lengths, x.dtype) for code in self.position_codes]
        for layer in self.layers:
            if self.layerdrop and self.training and torch.rand(()) < self.layerdrop:
                continue
            code = layer.position_code
            x = layer(x, NO_SIGNAL if code is None else signals[code], context, memory)
        return x if self.norm is None else self.norm(x)
