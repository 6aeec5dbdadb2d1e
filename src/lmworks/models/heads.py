"""What stands on the hidden states besides the vocabulary's matrix: transforms, poolers, classifiers."""

from __future__ import annotations

from torch import Tensor, nn

from lmworks.models.config import ModelConfig
from lmworks.models.slots import MaskedLMHead
from lmworks.nn.mlp import ACTIVATIONS
from lmworks.nn.norms import build_norm


class MaskedLMTransform(nn.Module):
    """norm(act(dense(x))) before the vocabulary's matrix (BERT)."""

    def __init__(self, hidden_size: int, out_size: int, hidden_act: str, norm: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, out_size)
        self.activation = ACTIVATIONS[hidden_act]
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[N, E] -> [N, embedding size]."""
        return self.norm(self.activation(self.dense(x)))


def build_head(config: ModelConfig) -> nn.Module | None:
    """The module of the head's slot; None where there is only the vocabulary's matrix, or nothing."""
    head, norm = config.head, config.output_stack.norm
    if isinstance(head, MaskedLMHead):
        size = config.embed.embedding_size or config.hidden_size
        return MaskedLMTransform(config.hidden_size, size, head.hidden_act, build_norm(norm.kind, size, norm.eps))
    return None
