"""The one Transformer: embeddings, a stack of blocks, a head. Trained, tuned, compressed and served as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from lmworks.models.block import Block
from lmworks.models.config import ModelConfig, RotaryPositions
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.rope import inverse_frequencies, llama3_scaled, rope_table


class Stack(nn.Module):
    """Blocks in order and the norm after the last."""

    def __init__(self, layers: list[Block], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, context: AttentionContext) -> Tensor:
        """[N, E] -> [N, E]."""
        for layer in self.layers:
            x = layer(x, rope, context)
        return self.norm(x)


class Transformer(nn.Module):
    """A decoder-only model over packed tokens. Build it with `models.build.build_model`."""

    rope_frequencies: Tensor | None
    """[D/2] float32, None when positions are learned."""

    def __init__(
        self, config: ModelConfig, embed_tokens: nn.Embedding, embed_positions: nn.Embedding | None, decoder: Stack
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.embed_positions = embed_positions
        self.decoder = decoder
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.register_buffer("rope_frequencies", self.rope_speeds(), persistent=False)

    def tie_weights(self) -> None:
        """Make the head share the embedding's matrix, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def rope_speeds(self) -> Tensor | None:
        """[D/2] angular speeds of the rotary embedding, None when positions are learned."""
        positions = self.config.positions
        if not isinstance(positions, RotaryPositions):
            return None
        speeds = inverse_frequencies(self.config.decoder.attention.head_dim, positions.rope_theta, device="cpu")
        if (scaling := positions.rope_scaling) is not None:
            speeds = llama3_scaled(
                speeds,
                scaling.factor,
                scaling.low_freq_factor,
                scaling.high_freq_factor,
                scaling.original_max_position_embeddings,
            )
        return speeds

    def forward(self, input_ids: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: [N] token ids.
            positions: [N] place of each token in its document.
            context: how attention reaches keys and values.

        Returns:
            [N, E]; `logits` maps them to the vocabulary.
        """
        x = self.embed_tokens(input_ids)
        rope = None
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        if self.rope_frequencies is not None:
            rope = rope_table(positions, self.rope_frequencies, x.dtype)
        return self.decoder(x, rope, context)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, V]."""
        return self.lm_head(hidden)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the model, as `to` does; the rotary speeds stay float32, or far positions would blur."""
        tied = getattr(self.lm_head, "weight", None) is self.embed_tokens.weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if tied:  # leaving the meta device makes two parameters of one
            self.tie_weights()
        speeds = self.rope_speeds()
        self.rope_frequencies = None if speeds is None else speeds.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's floating-point type, which is the activations'."""
        return self.embed_tokens.weight.dtype
