"""The one Transformer: embeddings, encoder, decoder or both, a head. Trained, tuned, compressed, served as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.head_slots import (
    CausalLMHead,
    EmbeddingHead,
    MaskedLMHead,
    NextSentenceHead,
    ProjectionHead,
    QuestionAnsweringHead,
    RewardHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from lmworks.models.heads import Head
from lmworks.models.stack import Stack
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.patches import PatchEmbedding
from lmworks.nn.pooling import pool
from lmworks.nn.quantized import QuantizedEmbedding, QuantizedLinear


class Transformer(nn.Module):
    """A model over packed tokens. Build it with `models.build.build_model`.

    Args:
        config: the model.
        embed_tokens: the vocabulary's vectors, shared by both stacks; None for a model of images alone.
        encoder: sees all of its documents.
        decoder: where there is an encoder too, attends to its output.
        head: what `logits` of a language model or `document_logits` of a classifier pass through.
        patches: images to the first hidden states of `vision`.
        vision: sees all patches of an image.
    """

    embed_tokens: nn.Embedding | QuantizedEmbedding
    """Models of text have it."""
    lm_head: nn.Linear | QuantizedLinear
    """Hidden states to the vocabulary; language models have it."""

    def __init__(
        self, config: ModelConfig, embed_tokens: nn.Embedding | None, encoder: Stack | None,
        decoder: Stack | None, head: Head | None, patches: PatchEmbedding | None = None, vision: Stack | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        if embed_tokens is not None:
            self.embed_tokens = embed_tokens
        self.patches, self.vision = patches, vision
        self.encoder, self.decoder = encoder, decoder
        self.head = head
        if isinstance(config.head, CausalLMHead | MaskedLMHead) and embed_tokens is not None:
            self.lm_head = nn.Linear(embed_tokens.embedding_dim, config.vocab_size, bias=bool(config.head.bias))
            if config.head.bias == "fixed":
                self.lm_head.bias.requires_grad = False
        self.tie_weights()

    @property
    def tied(self) -> bool:
        """Whether the head's matrix is the embedding's."""
        return self.config.tie_word_embeddings and hasattr(self, "lm_head")

    def tie_weights(self) -> None:
        """Make the head share the embedding's matrix, where the configuration says so."""
        if (
            self.tied
            and isinstance(self.lm_head, QuantizedLinear)
            and isinstance(self.embed_tokens, QuantizedEmbedding)
        ):
            self.lm_head.share(self.embed_tokens)
        elif self.tied:
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

        Raises:
            ConfigError: the model reads images alone.
        """
        stack = self.decoder if self.decoder is not None else self.encoder
        if stack is None:
            raise ConfigError(f"a {self.config.family} model reads images, not tokens", "Call `encode_images`")
        return stack(self.embed(input_ids), positions, context, memory=memory, token_type_ids=token_type_ids)

    def encode(self, input_ids: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """The encoder's hidden states [M, E] of source tokens [M], for a decoder's cross-attention.

        Raises:
            ConfigError: the model has no encoder.
        """
        if self.encoder is None:
            raise ConfigError(f"a {self.config.family} model has no encoder", "Give the whole prompt to the decoder")
        return self.encoder(self.embed(input_ids), positions, context)

    def encode_images(self, pixel_values: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Images as documents, one token a patch.

        Args:
            pixel_values: [B, C, H, W], or images [C, H, W] of any sizes.

        Returns:
            [N, E] hidden states of the layer and tokens that the configuration selects, [B+1] int32 bounds of images.

        Raises:
            ConfigError: the model has no vision, or the images are of another shape.
        """
        config = self.config.vision
        if config is None or self.patches is None or self.vision is None:
            raise ConfigError(f"a {self.config.family} model reads no images", "Use a model with a vision slot")
        x, cu_seqlens = self.patches(pixel_values)
        positions = torch.arange(len(x), device=x.device) - torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
        depth = None if config.vision_feature_layer == -1 else config.stack.num_hidden_layers - 1
        hidden = self.vision(x, positions, PackedContext(cu_seqlens), depth=depth)
        if config.class_token and config.vision_feature_select_strategy == "default":
            hidden = hidden[positions > 0]
            cu_seqlens = cu_seqlens - torch.arange(len(cu_seqlens), dtype=cu_seqlens.dtype, device=x.device)
        return hidden, cu_seqlens

    def embed(self, input_ids: Tensor) -> Tensor:
        """[N] token ids -> [N, E], or the narrower table's size."""
        x = self.embed_tokens(input_ids)
        if self.config.embed.multiplier != 1.0:
            # The factor is rounded to the activations' type first, as Gemma was trained.
            x = x * x.new_tensor(self.config.embed.multiplier)
        return x

    def before_head(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, E], what `lm_head` multiplies: the masked-LM transform, the logits' constant factor."""
        if isinstance(self.config.head, MaskedLMHead):
            assert self.head is not None, "a masked-LM head has a transform"
            hidden = self.head.transform(hidden)
        elif isinstance(self.config.head, CausalLMHead) and self.config.head.logit_multiplier != 1.0:
            hidden = hidden * self.config.head.logit_multiplier
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, V]."""
        logits = self.lm_head(self.before_head(hidden))
        cap = self.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()

    def token_logits(self, hidden: Tensor) -> Tensor:
        """[N, E] -> [N, labels] of a tagger, [N, 2] logits of an answer's start and end.

        Raises:
            ConfigError: the model's head judges no tokens.
        """
        if not isinstance(self.config.head, TokenClassificationHead | QuestionAnsweringHead):
            raise self._wrong_head("labels for tokens")
        assert self.head is not None, "a head with labels has a module"
        return self.head(hidden)

    def document_logits(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Judgments of whole documents.

        Args:
            hidden: [N, E].
            cu_seqlens: [D+1] bounds of the documents.

        Returns:
            [D, labels] of a classifier, [D, 1] of a reward model, [D, 2] of a judge of pairs: the second segment
            follows the first, it does not.

        Raises:
            ConfigError: the model's head judges no documents.
        """
        head = self.config.head
        match head:
            case SequenceClassificationHead() | RewardHead():
                assert self.head is not None, "a head with labels has a module"
                return self.head(pool(hidden, cu_seqlens, head.pooling))
            case NextSentenceHead() | MaskedLMHead(next_sentence=True):
                assert self.head is not None, "a judge of pairs has a module"
                return self.head.judge_pair(pool(hidden, cu_seqlens, "cls"))
        raise self._wrong_head("labels for documents")

    def embed_documents(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[N, E] -> [D, E], or the projection's size: a vector per document.

        Raises:
            ConfigError: the model has another head than the embedding's.
        """
        head = self.config.head
        if not isinstance(head, EmbeddingHead | ProjectionHead):
            raise self._wrong_head("vectors of documents")
        pooled = pool(hidden, cu_seqlens, head.pooling)
        if isinstance(head, ProjectionHead):
            assert self.head is not None, "a projection has a module"
            return self.head(pooled)
        pooled = pooled if self.head is None else self.head.transform(pooled)
        return nn.functional.normalize(pooled, dim=-1) if head.normalize else pooled

    def _wrong_head(self, wanted: str) -> ConfigError:
        return ConfigError(f"a model with the head {self.config.head.kind!r} gives no {wanted}", "Load one that does")

    @property
    def logit_softcap(self) -> float | None:
        """Bound of the logits, None for none (Gemma 2)."""
        head = self.config.head
        return head.final_logit_softcapping if isinstance(head, CausalLMHead) else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the model, as `to` does; leaving the meta device makes two parameters of a tied one."""
        tied = self.tied and getattr(self.lm_head, "weight", None) is self.embed_tokens.weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # a method of torch's without types
        if tied:
            self.tie_weights()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The embedding's floating-point type, which is the activations'."""
        return next(self.parameters()).dtype
