"""What fills the head's slot: what a model says about tokens, documents, pairs. Values only."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.models.slots import Activation, Positive, PositiveFloat


class CausalLMHead(Config):
    """The next token's logits."""

    kind: Literal["causal_lm"] = "causal_lm"
    bias: bool | Literal["fixed"] = False
    """ "fixed" is stored and not trained (BART)."""
    logit_multiplier: float = 1.0
    final_logit_softcapping: PositiveFloat | None = None


class DenseHead(Config):
    """A dense layer, its activation and a norm before the last matrix; `dense_act` "none" has none of them."""

    dense_act: Literal["none", "tanh"] | Activation = "none"
    dense_bias: bool = True
    dense_norm: bool = False
    """A norm like the stack's after the activation."""
    bias: bool = True
    """Of the last matrix."""


class MaskedLMHead(DenseHead):
    """A masked token's logits, through a dense layer and a norm (BERT, arXiv:1810.04805)."""

    kind: Literal["masked_lm"] = "masked_lm"
    dense_act: Literal["none"] | Activation = "gelu"
    dense_norm: bool = True
    next_sentence: bool = False
    """Also judge from the first token whether two segments follow each other (NSP; SOP, arXiv:1909.11942)."""


class NextSentenceHead(Config):
    """Whether two segments follow each other, alone (BERT)."""

    kind: Literal["next_sentence"] = "next_sentence"


Pooling = Literal["cls", "mean", "last"]


class LabeledHead(DenseHead):
    """Logits of labels."""

    num_labels: Positive
    labels: tuple[str, ...] = ()
    """Their names; none are LABEL_0 and so on."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.labels and len(self.labels) != self.num_labels:
            raise ValueError(f"{len(self.labels)} names of labels are given for num_labels {self.num_labels}")
        return self


class SequenceClassificationHead(LabeledHead):
    """One vector of logits per document."""

    kind: Literal["sequence_classification"] = "sequence_classification"
    pooling: Pooling = "last"
    bias: bool = False


class TokenClassificationHead(LabeledHead):
    """Logits per token: tagging."""

    kind: Literal["token_classification"] = "token_classification"


class QuestionAnsweringHead(LabeledHead):
    """Start and end logits of an extracted answer."""

    kind: Literal["question_answering"] = "question_answering"
    num_labels: Literal[2] = 2


class RewardHead(Config):
    """One number per document: how good it is (arXiv:2203.02155)."""

    kind: Literal["reward"] = "reward"
    pooling: Pooling = "last"
    bias: bool = False


class EmbeddingHead(Config):
    """One vector per document, for similarity (arXiv:1908.10084)."""

    kind: Literal["embedding"] = "embedding"
    pooling: Pooling = "mean"
    normalize: bool = False
    pooler: bool = False
    """The stored model has BERT's dense layer over the first token, which the vector does not use."""
    pooled_norm: bool = False
    """A norm like the stack's over the vector (CLIP's images)."""


class ProjectionHead(Config):
    """One vector per document in a space that texts and images share (CLIP, arXiv:2103.00020)."""

    kind: Literal["projection"] = "projection"
    pooling: Pooling = "last"
    pooled_norm: bool = False
    """As an `EmbeddingHead`'s."""
    projection_dim: Positive


Head = Annotated[
    CausalLMHead
    | MaskedLMHead
    | NextSentenceHead
    | SequenceClassificationHead
    | TokenClassificationHead
    | QuestionAnsweringHead
    | RewardHead
    | EmbeddingHead
    | ProjectionHead,
    Field(discriminator="kind"),
]
