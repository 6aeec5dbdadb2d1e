"""The one Transformer: embeddings, encoder, decoder or both, a head. Trained, tuned, compressed, served as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.slots import CausalLMHead, MaskedLMHead
from lmworks.models.stack import Stack
from lmworks.nn.attention_context import AttentionContext


class Transformer(nn.Module):
    """A model over packed tokens. Build it with `models.build.build_model`.

    Args:
        config: the model.
        embed_tokens: the vocabulary's vectors, shared by both stacks.
        embed_projection: to the hidden size, where the table is narrower.
        encoder: sees all of its documents.
        decoder: where there is an encoder too, attends to its output.
        head: what `logits` of a language model or `document_logits` of a classifier pass through.
    """

    lm_head: nn.Linear
    """Hidden states to the vocabulary; language models have it."""

    def __init__(
        self, config: ModelConfig, embed_tokens: nn.Embedding, embed_projection: nn.Module | None,
        encoder: Stack | None, decoder: Stack | None, head: nn.Module | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.embed_projection = embed_projection
        self.encoder, self.decoder = encoder, decoder
        self.head = head
        if isinstance(config.head, CausalLMHead | MaskedLMHead):
            bias = config.head.bias if isinstance(config.head, CausalLMHead) else True
            self.lm_head = nn.Linear(embed_tokens.embedding_dim, config.vocab_size, bias=bias)
        self.tie_weights()

    @property
    def tied(self) -> bool:
        """Whether the head's matrix is the embedding's."""
        return self.config.tie_word_embeddings and hasattr(self, "lm_head")

    def tie_weights(self) -> None:
        """Make the head share the embedding's matrix, where the configuration says so."""
        if self.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, input_ids: Tensor, positions: Tensor, context: AttentionContext, *, memory: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states of the decoder, or of the encoder of a model that has no decoder.

        Args:
            input_ids: [N] token ids.
            positions: [N] place of each token in its document.
            context: how attention reaches keys and values.
            memory: [M, E] what `encode` gave for the documents that are new in this step.
            token_type_ids: [N] segment of each token, for models that tell segments apart.

        Returns:
            [N, E]; `logits` maps them to the vocabulary.
        """
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None, "the configuration has checked that there is a stack"
        return stack(self.embed(input_ids), positions, context, memory=memory, token_type_ids=token_type_ids)

    def encode(self, input_ids: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """The encoder's hidden states [M, E] of source tokens [M], for a decoder's cross-attention.

        Raises:
            ConfigError: the model has no encoder.
        """
        if self.encoder is None:
            raise ConfigError(f"a {self.config.family} model has no encoder", "Give the whole prompt to the decoder")
        return self.encoder(self.embed(input_ids), positions, context)

    def embed(self, input_ids: Tensor) -> Tensor:
        """[N] token ids -> [N, E]."""
        x = self.embed_tokens(input_ids)
        if self.config.embed.multiplier != 1.0:
            # The factor is rounded to the activations' type first, as Gemma was trained.
            x = x * x.new_tensor(self.config.embed.multiplier)
        return x if self.embed_projection is None else self.embed_projection(x)

    def before_head(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, E], what `lm_head` multiplies: the masked-LM transform, the logits' constant factor."""
        if isinstance(self.config.head, MaskedLMHead):
            assert self.head is not None, "a masked-LM head has a transform"
            hidden = self.head(hidden)
        elif isinstance(self.config.head, CausalLMHead) and self.config.head.logit_multiplier != 1.0:
            hidden = hidden * self.config.head.logit_multiplier
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, V]."""
        logits = self.lm_head(self.before_head(hidden))
        cap = self.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()

    @property
    def logit_softcap(self) -> float | None:
        """Bound of the logits, None for none (Gemma 2)."""
        head = self.config.head
        return head.final_logit_softcapping if isinstance(head, CausalLMHead) else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the model, as `to` does; leaving the meta device makes two parameters of a tied one."""
        tied = self.tied and getattr(self.lm_head, "weight", None) is self.embed_tokens.weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if tied:
            self.tie_weights()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's floating-point type, which is the activations'."""
        return self.embed_tokens.weight.dtype
