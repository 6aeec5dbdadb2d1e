"""What stands on the hidden states besides the vocabulary's matrix: transforms, poolers, classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.kernels.gated_activation import ACTIVATIONS
from lmworks.models.config import ModelConfig
from lmworks.models.head_slots import (
    CausalLMHead,
    DenseHead,
    EmbeddingHead,
    MaskedLMHead,
    NextSentenceHead,
    ProjectionHead,
    RewardHead,
)
from lmworks.models.mixers import norm_of
from lmworks.nn.norms import build_norm

HEAD_ACTIVATIONS = ACTIVATIONS | {"tanh": torch.tanh}


class Head(nn.Module):
    """score(norm(act(dense(x)))) of tokens or of pooled documents; what a model lacks is None.

    Args:
        dense: before the last matrix.
        activation: after `dense`, by name.
        norm: after the activation.
        score: to the labels or the projection; language models have the vocabulary's matrix instead.
        pooler: BERT's dense layer over the first token, for judging pairs of segments.
        next_sentence: from the pooled token to the judgment.
    """

    def __init__(
        self, *, dense: nn.Linear | None = None, activation: str = "none", norm: nn.Module | None = None,
        score: nn.Linear | None = None, pooler: nn.Linear | None = None, next_sentence: nn.Linear | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dense, self.norm, self.score = dense, norm, score
        self.activation = activation
        self.pooler, self.next_sentence = pooler, next_sentence

    def transform(self, x: Tensor) -> Tensor:
        """[N, E] -> [N, what the last matrix takes]."""
        if self.dense is not None:
            x = HEAD_ACTIVATIONS[self.activation](self.dense(x))
        return x if self.norm is None else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """[N, E] -> [N, labels], or the projection's size."""
        assert self.score is not None, "only heads with labels or a projection are asked for scores"
        return self.score(self.transform(x))

    def judge_pair(self, first: Tensor) -> Tensor:
        """[D, E] first tokens of two segments each -> [D, 2]: they follow each other, they do not."""
        assert self.pooler is not None, "only heads that judge pairs are asked to"
        assert self.next_sentence is not None, "only heads that judge pairs are asked to"
        return self.next_sentence(torch.tanh(self.pooler(first)))


def build_head(config: ModelConfig) -> Head | None:
    """The module of the head's slot; None where there is only the vocabulary's matrix, or nothing."""
    head, size, norm = config.head, config.hidden_size, config.output_stack.norm
    if isinstance(head, CausalLMHead) or (isinstance(head, EmbeddingHead) and not (head.pooler or head.pooled_norm)):
        return None
    if isinstance(head, RewardHead):
        return Head(score=nn.Linear(size, 1, bias=head.bias))
    dense, head_norm, score, inner = None, None, None, size
    if isinstance(head, EmbeddingHead | ProjectionHead) and head.pooled_norm:
        head_norm = norm_of(norm, size)
    if isinstance(head, MaskedLMHead) and config.embed.embedding_size is not None:
        inner = config.embed.embedding_size
    if isinstance(head, DenseHead) and head.dense_act != "none":
        dense = nn.Linear(size, inner, bias=head.dense_bias)
        head_norm = build_norm(norm.kind, inner, norm.eps, bias=norm.bias) if head.dense_norm else None
    if isinstance(head, DenseHead) and not isinstance(head, MaskedLMHead):
        score = nn.Linear(inner, head.num_labels, bias=head.bias)
    elif isinstance(head, ProjectionHead):
        score = nn.Linear(size, head.projection_dim, bias=False)
    judges = isinstance(head, NextSentenceHead) or (isinstance(head, MaskedLMHead) and head.next_sentence)
    return Head(
        dense=dense,
        activation=head.dense_act if isinstance(head, DenseHead) else "none",
        norm=head_norm,
        score=score,
        pooler=nn.Linear(size, size) if judges or (isinstance(head, EmbeddingHead) and head.pooler) else None,
        next_sentence=nn.Linear(size, 2) if judges else None,
    )
